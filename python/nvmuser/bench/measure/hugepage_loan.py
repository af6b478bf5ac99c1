"""Hugepages for as long as something is measured: reserved where this user may do so, and given back.

Owns the reservation and the mount that it made. Which processes get the pages is decided by the caller.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from nvmuser.errors import SetupError
from nvmuser.hostfs import hugepages
from nvmuser.hostfs.hugepages import MOUNT, PAGE
from nvmuser.hostfs.limits import available_memory
from nvmuser.toolchain import proc


@contextlib.contextmanager
def borrowed_hugepages(size: int) -> Iterator[str | None]:
    """Provide `size` bytes of free 2 MiB pages while the block runs. Yields None, or why there are not enough.

    Free pages are used first. The rest is reserved as root, unless it exceeds half of the available memory.
    """
    missing = max(0, size - hugepages.free_bytes())
    if missing and (reason := _why_not(size, missing)):
        yield reason
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_mounted())
            stack.enter_context(_reserved(missing))
        except (OSError, SetupError) as error:
            reason = f"{size >> 20} MiB of hugepages cannot be had: {error}"
        else:
            reason = None
        yield reason


def _why_not(size: int, missing: int) -> str | None:
    if os.geteuid() == 0 and missing <= available_memory() // 2:
        return None
    reason = hugepages.why_too_few(size)
    return reason and f"{reason}, or run it as root"


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
        # It stays when another process uses it by now.
        with contextlib.suppress(SetupError):
            proc.output(["umount", str(MOUNT)], timeout=10)


@contextlib.contextmanager
def _reserved(missing: int) -> Iterator[None]:
    """Reserve `missing` bytes in pages.

    :raises SetupError: the kernel did not find so many.
    :raises OSError: this container may not reserve any.
    """
    if not missing:
        yield
        return
    free = hugepages.free_bytes()
    hugepages.resize_pool(missing // PAGE)
    try:
        if hugepages.free_bytes() < free + missing:
            raise SetupError("memory is too fragmented")
        yield
    finally:
        # Not back to the old number: others may have reserved or returned pages meanwhile.
        hugepages.resize_pool(-(missing // PAGE))
