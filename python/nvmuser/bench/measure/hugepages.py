"""Hugepages for as long as something is measured: reserved if we may, and given back.

Owns the reservation and the mount that it made. Who gets the pages is the business of whoever measures.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nvmuser.errors import SetupError
from nvmuser.guest.spec import HUGEPAGE, MIB, available_memory, free_hugepages
from nvmuser.toolchain import proc

MOUNT = Path("/dev/hugepages")
_RESERVED = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


@contextlib.contextmanager
def lent(size: int) -> Iterator[str | None]:
    """So many bytes of free 2 MiB pages while the block runs. Yields None, or why there are not enough.

    What is there already is used; root gets the rest reserved, unless that were more than half of the memory
    that is left.
    """
    missing = max(0, size - free_hugepages())
    if missing and (reason := _why_not(size, missing)):
        yield reason
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_mounted())
            stack.enter_context(_reserved(missing))
        except (OSError, SetupError) as error:
            reason = f"{size // MIB} MiB of hugepages cannot be had: {error}"
        else:
            reason = None
        yield reason


def _why_not(size: int, missing: int) -> str | None:
    if os.geteuid() == 0 and missing <= available_memory() // 2:
        return None
    try:
        pages = int(_RESERVED.read_text(encoding="ascii")) + missing // HUGEPAGE
    except OSError:
        return "this kernel has no 2 MiB hugepages"
    return f"{size // MIB} MiB of free hugepages are needed: sysctl vm.nr_hugepages={pages}, or run it as root"


@contextlib.contextmanager
def _mounted() -> Iterator[None]:
    if os.path.ismount(MOUNT):
        yield
        return
    MOUNT.mkdir(exist_ok=True)
    proc.output(["mount", "-t", "hugetlbfs", "nodev", str(MOUNT)], timeout=10)
    try:
        yield
    finally:
        # Somebody else may use it by now; then it stays.
        with contextlib.suppress(SetupError):
            proc.output(["umount", str(MOUNT)], timeout=10)


@contextlib.contextmanager
def _reserved(missing: int) -> Iterator[None]:
    """:raises SetupError: the kernel did not find so many, or this is a container that may not."""
    if not missing:
        yield
        return
    free = free_hugepages()
    _reserve(missing // HUGEPAGE)
    try:
        if free_hugepages() < free + missing:
            raise SetupError("memory is too fragmented")
        yield
    finally:
        # Not back to what it was: others may have taken or given some meanwhile.
        _reserve(-(missing // HUGEPAGE))


def _reserve(pages: int) -> None:
    reserved = int(_RESERVED.read_text(encoding="ascii"))
    _RESERVED.write_text(f"{max(0, reserved + pages)}\n", encoding="ascii")
