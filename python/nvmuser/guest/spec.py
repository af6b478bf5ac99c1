"""The specification of a guest, from which QEMU's arguments are made, and what it needs of the host's memory.

Owns validation and the choice between hugepages and 4 KiB pages. It neither makes arguments nor starts anything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nvmuser.errors import GuestError, UsageError
from nvmuser.hostfs import hugepages
from nvmuser.hostfs.limits import available_memory
from nvmuser.hostfs.sockets import answers, check_socket_path

MIB = 1 << 20
GIB = 1 << 30
_SMALLEST = 256 * MIB
_ROOT_PORTS = 32
_QCOW2 = b"QFI\xfb"

IOMMUS = ("intel-iommu", "amd-iommu", "virtio-iommu-pci", "virtio-iommu")
"""Devices of QEMU behind which a guest finds no working NVMe controller of ours. The last is an alias."""

Firmware = Literal["seabios", "uefi"]
Suite = Literal["trixie", "bookworm"]


@dataclass(frozen=True)
class GuestSpec:
    """One virtual machine. Without an `image`, or a controller to boot from, it is our appliance."""

    cpus: int = 1
    memory: int = GIB
    """In bytes."""
    sockets: tuple[Path, ...] = ()
    """The vfio-user sockets of its NVMe controllers."""
    directories: tuple[Path, ...] | None = None
    """With libvfio: the device directories that stand for `sockets`. None: QEMU's own vfio-user client."""
    hugepages: bool | None = None
    """Memory of 2 MiB pages; None: if enough of them are free."""
    memory_file: Path | None = None
    """What its memory is: a file that outlives QEMU, in place of memory that ends with it."""
    machine_type: str = "q35"
    """QEMU's, of which the alias is the newest that a QEMU has."""
    image: Path | None = None
    """A disk of the user, raw or qcow2, from which the guest boots."""
    boot_from: Path | None = None
    """One of `sockets`: the guest boots from that controller."""
    firmware: Firmware = "seabios"
    suite: Suite = "trixie"
    """Of which Debian the appliance's kernel is."""
    append: str = ""
    """Added to the appliance's kernel command line."""
    spare_ports: int = 4
    """Empty PCIe root ports, for what is plugged later."""
    qemu_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UsageError(f"a guest needs at least one CPU, not {self.cpus}")
        if self.memory < _SMALLEST or self.memory % hugepages.PAGE:
            raise UsageError(f"a guest's memory is a multiple of 2 MiB from 256 MiB on, not {self.memory} bytes")
        if len(set(self.sockets)) != len(self.sockets):
            raise UsageError("the same controller is given twice: an endpoint serves one connection")
        if self.directories is not None and len(self.directories) != len(self.sockets):
            raise UsageError("with libvfio each controller has a device directory")
        if self.spare_ports < 0 or len(self.sockets) + self.spare_ports > _ROOT_PORTS:
            raise UsageError(f"a guest has room for {_ROOT_PORTS} controllers and spare ports together")
        if self.memory_file is not None and self.hugepages:
            raise UsageError("a guest's memory is a file, or hugepages; for both the file may be on a hugetlbfs")
        if self.boot_from is not None and self.boot_from not in self.sockets:
            raise UsageError("the controller to boot from is not one of the guest's")
        if self.boot_from is not None and self.image is not None:
            raise UsageError("a guest boots from an image or from a controller, not from both")
        for argument in self.qemu_args:
            if kind := iommu_in(argument):
                raise UsageError(
                    f"a guest with an IOMMU ({kind}) has no NVMe disk: its driver finds no controller, or no I/O "
                    "queue; start it without"
                )
        if self.own_system and self.append:
            raise UsageError("--append is for the appliance's kernel; an image brings its own command line")

    @property
    def libvfio(self) -> bool:
        """Whether QEMU reaches the controllers as if they were the kernel's VFIO devices."""
        return self.directories is not None

    @property
    def own_system(self) -> bool:
        """Whether the guest boots a system of the user's instead of the appliance."""
        return self.image is not None or self.boot_from is not None


def iommu_in(argument: str) -> str:
    """The IOMMU that an argument of QEMU adds to the guest, by its name; empty when it adds none."""
    kind = argument.split(",")[0].removeprefix("driver=")
    if argument.lstrip().startswith("{"):  # -device takes JSON too
        try:
            kind = str(json.loads(argument).get("driver", ""))
        except ValueError:
            return ""
    return kind if kind in IOMMUS else ""


def use_hugepages(spec: GuestSpec) -> bool:
    """Whether the guest would get hugepages now, or 4 KiB pages.

    :raises GuestError: there is not enough of what it needs.
    """
    wants = spec.hugepages is not False and spec.memory_file is None
    reason = hugepages.why_too_few(spec.memory) if wants else ""
    if reason is None:
        return True
    _check_plain_pages(spec, reason)
    return False


@contextlib.contextmanager
def reserved_memory(spec: GuestSpec) -> Iterator[int | None]:
    """A memfd in hugepages for the guest, reserved before another guest has them; None: 4 KiB pages.

    :raises GuestError: there is not enough of what it needs.
    """
    with contextlib.ExitStack() as stack:
        fd = None
        if use_hugepages(spec):
            try:
                fd = stack.enter_context(hugepages.reserved(spec.memory))
            except OSError as error:
                # Somebody else took them a moment ago.
                _check_plain_pages(spec, hugepages.why_too_few(spec.memory) or f"no hugepages: {error.strerror}")
        yield fd


def _check_plain_pages(spec: GuestSpec, reason: str) -> None:
    """:raises GuestError: hugepages were asked for, which fails for `reason`, or memory is short."""
    if spec.hugepages:
        raise GuestError(f"{reason}, or use --no-hugepages")
    if (available := available_memory()) < spec.memory:
        raise GuestError(
            f"{spec.memory // MIB} MiB of memory wanted, {available // MIB} MiB are available: use less --memory"
        )


def check_sockets(spec: GuestSpec) -> None:
    """Check before anything boots that a controller is behind each socket: QEMU's own error is later and less clear.

    :raises GuestError: there is none.
    """
    for path in spec.sockets:
        check_socket_path(path)
        if not path.exists():
            raise GuestError(
                f"{path}: there is no such controller socket: does the controller exist, and the target run?"
            )
        if not answers(path):
            raise GuestError(f"{path}: nobody answers at this controller socket: is the target running?")


def image_format(path: Path) -> str:
    """`qcow2` or `raw`, by its first bytes.

    :raises GuestError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return "qcow2" if file.read(len(_QCOW2)) == _QCOW2 else "raw"
    except OSError as error:
        raise GuestError(f"{path}: {error.strerror}") from error
