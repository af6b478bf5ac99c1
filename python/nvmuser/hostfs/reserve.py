"""Blocks of a file system for what will be written in a file, so that it is not refused when nothing is free.

What the file holds stays as it is, also while SPDK writes to it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from nvmuser.errors import SetupError

_libc = ctypes.CDLL(None, use_errno=True)


def reserve(path: str, length: int) -> None:
    """Have blocks for the first `length` bytes of a file. Nothing is done for a device, and on a file system that
    cannot promise any: `posix_fallocate` would write to it there, beside SPDK.

    :raises SetupError: there is no room, or the file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode):
                _allocate(fd, min(length, info.st_size))
        finally:
            os.close(fd)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error


def _allocate(fd: int, length: int) -> None:
    """fallocate(2) of the beginning; a signal interrupts it."""
    if not length:
        return
    while _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        if code == errno.EOPNOTSUPP:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
