"""The machine's 2 MiB hugepages: how many are free, whether they can be used, how to get more.

Owns the kernel's files about them, the words for what is missing, and memory that has its pages reserved. It does not
decide who uses hugepages, and it changes the pool for nobody: see `nvmuser.bench.measure.hugepages` for a loan.
Sources: Documentation/admin-guide/mm/hugetlbpage.rst and mm/hugetlb_reserv.rst of Linux.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nvmuser.hostfs import cgroups

PAGE = 2 << 20
"""Bytes of one hugepage. SPDK maps memory in pieces of this size, whatever the size of the pages."""
MOUNT = Path("/dev/hugepages")
MOUNT_COMMAND = f"mkdir -p {MOUNT} && mount -t hugetlbfs nodev {MOUNT}"
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_NONE = "this kernel has no 2 MiB hugepages"


@dataclass(frozen=True)
class HugepagePool:
    """Hugepages of the machine, in pages. `free` leaves out pages that a process has reserved and not touched yet."""

    total: int
    free: int


def query_pool() -> HugepagePool | None:
    """The pool as it is now; None when the kernel has no 2 MiB hugepages."""
    try:
        total, free, reserved = (_read(name) for name in ("nr_hugepages", "free_hugepages", "resv_hugepages"))
    except OSError:
        return None
    return HugepagePool(total, free - reserved)


def free_bytes() -> int:
    """Bytes in free hugepages that this process may have."""
    pool, left = query_pool(), cgroups.hugepages_left()
    free = pool.free * PAGE if pool else 0
    return free if left is None else min(free, left)


def why_too_few(size: int) -> str | None:
    """Why `size` bytes of hugepages are not free, with the command that helps; None when they are."""
    pool = query_pool()
    if pool is None:
        return _NONE
    left = cgroups.hugepages_left()
    if left is not None and left < size:
        # The kernel ends with SIGBUS who touches more.
        return (
            f"{size >> 20} MiB of hugepages are needed, and the control group of this process has {left >> 20} MiB "
            "left: raise its hugetlb.2MB.max (hugetlb.2MB.limit_in_bytes)"
        )
    missing = -(-size // PAGE) - pool.free
    if missing <= 0:
        return None
    return (
        f"{size >> 20} MiB of hugepages are needed, {pool.free * PAGE >> 20} MiB are free: "
        f"sysctl vm.nr_hugepages={pool.total + missing}"
    )


def why_unusable(size: int) -> str | None:
    """Why this process cannot have `size` bytes in hugepages, with the command that helps; None when it can."""
    if not os.path.ismount(MOUNT):
        return f"no hugetlbfs on {MOUNT}: {MOUNT_COMMAND}"
    if not os.access(MOUNT, os.W_OK):
        return f"{MOUNT} is not writable for this user"
    return _why_no_room(size) or why_too_few(size)


def _why_no_room(size: int) -> str | None:
    """Why the mount, which may have a limit of its own, has no room for `size` bytes."""
    room = os.statvfs(MOUNT)
    left = room.f_bavail * room.f_frsize
    if not room.f_blocks or left >= size:
        return None
    # Linux does not change the limit of a mount that is there.
    return (
        f"{size >> 20} MiB of hugepages are needed, and the mount on {MOUNT} has {left >> 20} MiB left: "
        f"umount {MOUNT}, and mount it with a higher size="
    )


@contextlib.contextmanager
def reserved(size: int) -> Iterator[int]:
    """The descriptor of a memfd of `size` bytes whose pages nobody else gets, while it is open anywhere.

    The kernel reserves a shared file's pages when they are mapped, and keeps them for the file afterwards.

    :raises OSError: ENOMEM when they are not free.
    """
    fd = os.memfd_create("nvmuser", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    try:
        os.ftruncate(fd, size)
        mmap.mmap(fd, size).close()
        yield fd
    finally:
        os.close(fd)


def resize_pool(pages: int) -> None:
    """Change the number of hugepages of the machine by `pages`, as far as the kernel finds memory.

    :raises OSError: the kernel has none, or this process may not change their number.
    """
    (POOL / "nr_hugepages").write_text(f"{max(0, _read('nr_hugepages') + pages)}\n", encoding="ascii")


def _read(name: str) -> int:
    return int((POOL / name).read_text(encoding="ascii"))
