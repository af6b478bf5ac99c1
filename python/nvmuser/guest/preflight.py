"""What stands in the way of plugging controllers into a running QEMU, each with its fix.

Owns the judgement only: `nvmuser.guest.qmp` has asked QEMU for the facts. Nothing is changed.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvmuser.guest.qemu import DRIVER, PLAIN_DRIVER
from nvmuser.guest.qmp import Facts, MemoryBackend
from nvmuser.guest.spec import IOMMUS
from nvmuser.hostfs.hugepages import PAGE
from nvmuser.hostfs.sockets import answers

_SMALL_PAGE = 4096


@dataclass(frozen=True)
class PlugProblem:
    """Something that stands in the way of plugging, and what to do about it."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def preflight(
    facts: Facts, sockets: Sequence[Path], *, user: int | None = None, driver: str = DRIVER
) -> list[PlugProblem]:
    """All problems at once.

    :param user: user ID of QEMU; None: ours.
    """
    return [
        *_driver(facts, driver),
        *_memory(facts),
        *_iommu(facts, driver),
        *_ports(facts, len(sockets)),
        *(problem for path in sockets for problem in _socket(path, os.geteuid() if user is None else user)),
    ]


def _driver(facts: Facts, driver: str) -> Iterator[PlugProblem]:
    if driver not in facts.drivers:
        fix = "QEMU 10.1 or later, built with it, is needed; or start this one with libvfio.so preloaded"
        yield PlugProblem(f"QEMU {facts.version_text} has no {driver}", fix)
    if driver == PLAIN_DRIVER and facts.has_native:
        # QEMU 11.1 ends itself: 'Object … is not an instance of type vfio-iommu-legacy'.
        fix = f"plug without libvfio: {DRIVER} and {PLAIN_DRIVER} do not mix"
        yield PlugProblem(f"this QEMU has {DRIVER} devices", fix)


def _memory(facts: Facts) -> Iterator[PlugProblem]:
    shared = "start it with -object memory-backend-memfd,id=mem,size=…,share=on -machine memory-backend=mem"
    if not facts.memory:
        yield PlugProblem("the guest's memory is not shared", shared)
    for backend in facts.memory:
        if not backend.shared:
            yield PlugProblem(f"the guest's memory {backend.name} is not shared", shared)
        yield from _pages(backend)


def _pages(backend: MemoryBackend) -> Iterator[PlugProblem]:
    page = backend.page_size
    if backend.size % PAGE:
        yield PlugProblem(
            f"the guest's memory {backend.name} has {backend.size} bytes",
            "make it a multiple of 2 MiB: SPDK maps memory in such pieces",
        )
    if page and page != _SMALL_PAGE and page % PAGE:
        yield PlugProblem(
            f"the guest's memory {backend.name} has pages of {page} bytes",
            "use a memfd or a file in tmpfs (4 KiB), or hugepages of 2 MiB or 1 GiB",
        )
    if page >= PAGE and not backend.backed:
        yield PlugProblem(
            f"the hugepages of the guest's memory {backend.name} are not reserved",
            "start it with reserve=on or prealloc=on: when one is missing later, SPDK dies of the access",
        )


def _iommu(facts: Facts, driver: str) -> Iterator[PlugProblem]:
    for kind in (*facts.devices.values(), *facts.unnamed):
        if kind in IOMMUS:
            yield PlugProblem(
                f"the guest has an IOMMU ({kind})",
                f"start it without: {driver} maps memory behind it again all the time",
            )


def _ports(facts: Facts, wanted: int) -> Iterator[PlugProblem]:
    if (free := len(facts.free_ports)) < wanted:
        yield PlugProblem(
            f"{wanted} free PCIe root ports are needed, the guest has {free}",
            "they are made when QEMU starts: -machine q35 -device pcie-root-port,id=… (ours: --spare-ports)",
        )


def _socket(path: Path, user: int) -> Iterator[PlugProblem]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        yield PlugProblem(f"{path} does not exist", "create the controller, and start the target")
        return
    if not stat.S_ISSOCK(mode):
        yield PlugProblem(f"{path} is not a socket", "name a controller")
    elif not answers(path):
        yield PlugProblem(f"nobody answers at {path}", "start the target")
    elif closed := closed_to(path, user):
        yield PlugProblem(f"{closed} is closed to user {user}, as whom QEMU runs", "give the controller that --owner")


def closed_to(path: Path, user: int) -> Path | None:
    """The first thing on the way to a socket that its mode closes to a user: a directory, or the socket itself."""
    if user == 0:
        return None
    groups = _groups(user)
    for part in (*reversed(path.parents), path):
        info = part.stat()
        needed = 0o2 if part == path else 0o1
        if info.st_uid == user:
            needed <<= 6
        elif info.st_gid in groups:
            needed <<= 3
        if not info.st_mode & needed:
            return part
    return None


def _groups(user: int) -> set[int]:
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return set()
    return set(os.getgrouplist(entry.pw_name, entry.pw_gid))
