"""The QEMUs that libvfio is tested with: Debian's older ones, which only know the kernel's VFIO, and our own."""

from __future__ import annotations

import os
from pathlib import Path

from nvmuser.toolchain import Qemu, find_qemu, older_qemu
from nvmuser.toolchain.steps import Reporter

DEBIAN: dict[str, older_qemu.Suite] = {"qemu-7.2": "bookworm", "qemu-10.0": "trixie"}
QEMUS = [*DEBIAN, "qemu-own"]


def the_qemu(name: str) -> Qemu:
    """One of these QEMUs; set-up has fetched it, or it is fetched now."""
    if name not in DEBIAN:
        return find_qemu()
    suite = DEBIAN[name]
    if not older_qemu.is_done(suite):
        older_qemu.fetch(suite, Reporter(Path(os.devnull)))
    return older_qemu.find_older_qemu(suite)
