"""What nvmuser runs on: SPDK, QEMU, the guest, the accelerator.

`nvmuser setup` provides them, `nvmuser doctor` checks them.

The functions here are all that the rest of nvmuser needs. They look things up and never install anything.
"""

from __future__ import annotations

from nvmuser.runtime.accel import accelerator
from nvmuser.runtime.appliance import Appliance, find_appliance
from nvmuser.runtime.libvfio import find_libvfio
from nvmuser.runtime.qemu import Qemu, find_qemu
from nvmuser.runtime.spdk import Spdk, find_spdk

__all__ = ["Appliance", "Qemu", "Spdk", "accelerator", "find_appliance", "find_libvfio", "find_qemu", "find_spdk"]
