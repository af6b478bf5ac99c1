"""What nvmuser runs on: SPDK, QEMU, the guest, the accelerator.

`nvmuser setup` provides them.

The functions here are all that the rest of nvmuser needs. They look things up and never install anything.
"""

from __future__ import annotations

from nvmuser.toolchain.accel import accelerator
from nvmuser.toolchain.appliance import Appliance, find_appliance
from nvmuser.toolchain.libvfio import find_libvfio
from nvmuser.toolchain.qemu import Qemu, find_qemu
from nvmuser.toolchain.spdk import Spdk, find_spdk

__all__ = ["Appliance", "Qemu", "Spdk", "accelerator", "find_appliance", "find_libvfio", "find_qemu", "find_spdk"]
