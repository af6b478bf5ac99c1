"""Checks of the parts that `nvmuser setup` provides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nvmuser.doctor.check import Finding
from nvmuser.errors import SetupError
from nvmuser.paths import SETUP, StateDir
from nvmuser.toolchain import accel, appliance
from nvmuser.toolchain import bindings as modules
from nvmuser.toolchain import libvfio as libvfio_library
from nvmuser.toolchain import qemu as qemu_program
from nvmuser.toolchain import spdk as spdk_tree


def spdk(_state: StateDir) -> Iterator[Finding]:
    """SPDK is there."""

    def look() -> str:
        found = spdk_tree.find_spdk()
        return f"{found.version} in {found.prefix}"

    yield _part("SPDK", look)


def qemu(_state: StateDir) -> Iterator[Finding]:
    """A QEMU with a vfio-user client is there."""

    def look() -> str:
        found = qemu_program.find_qemu()
        return f"{found.version} with {qemu_program.DEVICE} ({found.origin})"

    yield _part("QEMU", look)


def guest(_state: StateDir) -> Iterator[Finding]:
    """The appliance is there."""

    def look() -> str:
        found = appliance.find_appliance()
        return f"kernel {found.kernel_version}, {found.fio_version}"

    yield _part("guest", look)


def accelerator(_state: StateDir) -> Iterator[Finding]:
    """KVM works, or why not."""
    yield _part("accelerator", _accelerator)


def bindings(_state: StateDir) -> Iterator[Finding]:
    """The modules over SPDK's libraries are built."""
    name, gain = "Python modules", "PCI devices and NVMe hosts written in Python"
    try:
        missing = [binding.name for binding in modules.ALL if not modules.is_built(binding)]
        reasons = [reason for binding in modules.ALL if (reason := modules.unavailable(binding))]
    except SetupError as error:
        yield Finding(name, False, _first_line(error), SETUP, gain=gain)
        return
    if missing:
        yield Finding(name, False, f"no {', '.join(missing)}", reasons[0] if reasons else SETUP, gain=gain)
    else:
        yield Finding(name, True, ", ".join(binding.name for binding in modules.ALL))


def libvfio(_state: StateDir) -> Iterator[Finding]:
    """The library for a QEMU without a vfio-user client is built."""
    try:
        yield Finding("libvfio", True, str(libvfio_library.find_libvfio()))
    except SetupError as error:
        yield Finding("libvfio", False, _first_line(error), SETUP, gain="guests under QEMU before 10.1")


def _part(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look(), needed=True)
    except SetupError as error:
        return Finding(name, False, _first_line(error), SETUP, needed=True)


def _first_line(error: SetupError) -> str:
    return str(error).splitlines()[0]


def _accelerator() -> str:
    answer = accel.accelerator()
    if answer == "kvm":
        return "kvm"
    if not Path("/dev/kvm").exists():
        return "tcg (software emulation: this machine has no /dev/kvm)"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg (software emulation: no access to /dev/kvm; be in group kvm to use it)"
    return "tcg (software emulation: no kernel came up under KVM)"
