"""Directories for results and files behind disks that are measured. Their errors are one line."""

from __future__ import annotations

import os
from pathlib import Path

from nvmuser.errors import NvmuserError, UsageError

_CHUNK = 4 << 20


def output_directory(path: Path) -> Path:
    """Made if it is not there.

    :raises UsageError: it cannot be made, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except PermissionError:
        raise _not_writable(path) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; choose another --output") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise _not_writable(path)
    return path


def _not_writable(path: Path) -> UsageError:
    return UsageError(f"{path} is not writable; choose another --output")


def fill(path: Path, size: int) -> None:
    """A file with every block written: holes and unwritten extents would be read without any I/O.

    :raises NvmuserError: no room. Nothing is left.
    """
    chunk = os.urandom(_CHUNK)
    try:
        with path.open("wb") as file:
            for start in range(0, size, _CHUNK):
                file.write(chunk[: size - start])
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise NvmuserError(f"{path}: {error.strerror}: {size >> 20} MiB are needed there") from None
