"""File descriptors with one owner each.

Owns the descriptors that travel in messages: from the moment the kernel installs them until another owner takes them
over or they are closed, exactly once. What a descriptor *is* (guest memory, an eventfd) is checked here too.
"""

from __future__ import annotations

import ctypes
import os
import stat
from types import TracebackType
from typing import Self

_TMPFS_MAGIC = 0x01021994
_HUGETLBFS_MAGIC = 0x958458F6
"""linux/magic.h. memfds are tmpfs files, or hugetlbfs files with MFD_HUGETLB."""

_libc = ctypes.CDLL(None, use_errno=True)


class Descriptor:
    """One open file descriptor and the duty to close it.

    :param number: taken over.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """The descriptor's number; the owner stays.

        :raises ValueError: after `close` or `detach`.
        """
        if self._number < 0:
            raise ValueError("descriptor is closed")
        return self._number

    def detach(self) -> int:
        """Give the descriptor to the caller, and return its number.

        :raises ValueError: after `close` or `detach`.
        """
        number, self._number = self.fileno(), -1
        return number

    def duplicate(self) -> Descriptor:
        """Another descriptor of the same open file, for another owner.

        :raises OSError: no descriptors are left.
        :raises ValueError: after `close` or `detach`.
        """
        return Descriptor(os.dup(self.fileno()))

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self._number >= 0:
            number, self._number = self._number, -1
            os.close(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Descriptor({self._number})"


def close_all(descriptors: list[Descriptor]) -> None:
    """Close every descriptor and empty the list."""
    while descriptors:
        descriptors.pop().close()


class _Statfs(ctypes.Structure):
    """struct statfs (statfs(2)): only its first word is read."""

    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def is_guest_memory(descriptor: Descriptor) -> bool:
    """Whether this is memory that a guest may share: a file of tmpfs or hugetlbfs (so, every memfd).

    Nothing else is accepted. A page fault on a file of a network or FUSE file system waits for another process, and
    this one serves every guest.

    :raises ValueError: the descriptor is closed.
    """
    number = descriptor.fileno()
    if not stat.S_ISREG(os.fstat(number).st_mode):
        return False
    info = _Statfs()
    if _libc.fstatfs(number, ctypes.byref(info)) != 0:
        return False
    return info.f_type in (_TMPFS_MAGIC, _HUGETLBFS_MAGIC)


def is_eventfd(descriptor: Descriptor) -> bool:
    """Whether this is an eventfd: writing to it signals an interrupt and does nothing else (proc_pid_fd(5)).

    :raises ValueError: the descriptor is closed.
    """
    return os.readlink(f"/proc/self/fd/{descriptor.fileno()}") == "anon_inode:[eventfd]"
