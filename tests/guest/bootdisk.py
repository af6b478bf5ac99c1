"""A disk with a system of its own, such as a user has one: the appliance's kernel and initramfs behind Debian's GRUB.

It boots with SeaBIOS and with UEFI, and is made without any rights.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from nvmuser.toolchain import find_appliance

MARK = "own.system=1"
"""On the kernel's command line of a guest that was booted from such a disk."""

_GRUB = f"""
linux /boot/vmlinuz console=ttyS0 quiet panic=-1 {MARK}
initrd /boot/initrd.img
boot
"""


def write_bootdisk(path: Path, scratch: Path) -> None:
    """Write a raw image. It needs GRUB's packages: ci/debian-packages-tests.txt."""
    appliance = find_appliance()
    boot = scratch / "tree/boot"
    (boot / "grub").mkdir(parents=True)
    shutil.copy(appliance.kernel, boot / "vmlinuz")
    shutil.copy(appliance.initrd, boot / "initrd.img")
    (boot / "grub/grub.cfg").write_text(_GRUB)
    # An ISO image that firmware takes for a disk too. No compression: unpacking costs more than reading.
    command = ["grub-mkrescue", "--compress=no", "-o", path, scratch / "tree"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
