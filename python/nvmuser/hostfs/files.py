"""Backing files: made once, measured, grown, synchronised, removed.

Owns what happens to files on this machine. Whether it should happen is decided by its callers; what exists
already is never truncated, and only what we made is ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from nvmuser.errors import ConflictError, NotFoundError, NvmuserError, SetupError, UsageError
from nvmuser.hostfs import locks
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir

_AT_ONCE = 64


def prepare(volume: Volume, state: StateDir) -> Volume:
    """A declared file volume with its path and size, after looking at the machine. Nothing is made yet.

    :raises UsageError: its path or size cannot be used.
    :raises ConflictError: the file is not ours to take.
    :raises SetupError: the file cannot be opened.
    """
    if volume.backend != "file":
        return volume
    path = Path(path_of(volume, state))
    try:
        info = path.stat()
    except FileNotFoundError:
        if not volume.size:
            raise UsageError(f"{path}: does not exist; pass --size to make it") from None
        return replace(volume, path=str(path), owned=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if not volume.path:
        raise ConflictError(f"{path}: left over from another volume; move it away, or use it with --path {path}")
    return _existing(volume, path, info)


def expected(volume: Volume) -> Volume:
    """A volume that another host has open. Its file has to be here too, and to be the same one.

    :raises NotFoundError: it is not on storage that both hosts share.
    :raises UsageError: it has another size.
    """
    if (size := size_of(volume.path)) != volume.size:
        raise UsageError(
            f"{volume.path}: has {size} bytes here, and {volume.size} where its guest is: not the same file"
        )
    return volume


def path_of(volume: Volume, state: StateDir) -> str:
    """Where the file of a declared file volume is, or will be made."""
    return os.path.abspath(volume.path or state.volumes / volume.in_spdk)


def _existing(volume: Volume, path: Path, info: os.stat_result) -> Volume:
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise UsageError(f"{path}: neither a file nor a block device")
    locks.check_free(str(path))
    size = size_of(str(path))
    if volume.size and volume.size != size:
        raise UsageError(f"{path}: exists and has {size} bytes, not {volume.size}; leave --size out to use it as it is")
    if size == 0 or size % volume.block_size:
        raise UsageError(f"{path}: its size, {size}, is not a multiple of the block size, {volume.block_size}, above 0")
    return replace(volume, path=str(path), size=size, owned=False)


def size_of(path: str) -> int:
    """Of a file or block device.

    :raises NotFoundError: it is missing.
    :raises SetupError: it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: the backing file is gone; its data cannot be served") from None
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise SetupError(f"{path}: has no size: {error.strerror}") from error
    finally:
        os.close(fd)


def each(work: Callable[[Volume], None], volumes: Sequence[Volume]) -> dict[Key, NvmuserError]:
    """Do it for all of them; returns the errors by the volumes' keys.

    At once, because each waits for the disk, which takes many in the time of one.
    """

    def attempt(volume: Volume) -> NvmuserError | None:
        try:
            work(volume)
        except NvmuserError as error:
            return error
        return None

    if len(volumes) < 2:
        results = list(map(attempt, volumes))
    else:
        with ThreadPoolExecutor(min(len(volumes), _AT_ONCE)) as pool:
            results = list(pool.map(attempt, volumes))
    return {one.key: error for one, error in zip(volumes, results, strict=True) if error}


def provision(volume: Volume) -> None:
    """Make the backing file of a new volume: sparse, and on the disk when this returns.

    It goes on with what an earlier, interrupted attempt of this same volume left; its caller calls it only
    for volumes that have not been provisioned, so that nothing served is ever touched.

    :raises NvmuserError: it could not be made; nothing is left behind.
    """
    if not volume.owned:
        return
    path = Path(volume.path)
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd, is_new = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileExistsError:
            fd, is_new = os.open(path, flags), False
        try:
            if not is_new and not _untouched(fd, volume):
                raise ConflictError(f"{path}: somebody made it meanwhile; move it away, or use it with --path {path}")
            os.ftruncate(fd, volume.size)
            os.fsync(fd)
        except OSError:
            if is_new:
                path.unlink()
            raise
        finally:
            os.close(fd)
        _sync_directory(path.parent)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error


def _untouched(fd: int, volume: Volume) -> bool:
    """Is it as an interrupted attempt leaves a file: ours, not larger, and without any data?"""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_size > volume.size:
        return False
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def check_or_grow(volume: Volume) -> None:
    """The backing is there and large enough; one that we made is grown to the size that is wanted.

    :raises NvmuserError: it is not, which means that data is missing.
    """
    size = size_of(volume.path)
    if size >= volume.size:
        return
    if not volume.owned:
        raise ConflictError(f"{volume.path}: has {size} bytes, fewer than {volume.size}; it is not ours to grow")
    try:
        os.truncate(volume.path, volume.size)
    except OSError as error:
        raise SetupError(f"{volume.path}: {error.strerror}") from error


def shrink_back(volume: Volume) -> None:
    """Give a file of ours its size again after a growth that came to nothing. For its caller to know that nobody has
    seen more of it.

    :raises SetupError: it could not be done.
    """
    if not volume.owned:
        return
    try:
        if os.stat(volume.path).st_size > volume.size:
            os.truncate(volume.path, volume.size)
    except OSError as error:
        raise SetupError(f"{volume.path}: {error.strerror}") from error


def remove_unmade(volume: Volume) -> None:
    """Remove what an interrupted `provision` has left; what somebody else made meanwhile stays."""
    if volume.backend != "file" or not volume.owned:
        return
    try:
        fd = os.open(volume.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # not there, or not as we make them
    try:
        if not _untouched(fd, volume):
            return
    finally:
        os.close(fd)
    remove(volume)


def remove(volume: Volume) -> None:
    """Remove the backing file if we made it."""
    if volume.backend == "file" and volume.owned:
        path = Path(volume.path)
        try:
            path.unlink(missing_ok=True)
            _sync_directory(path.parent)
        except FileNotFoundError:
            return  # the directory is gone, so the file is too
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}") from error


def sync(volume: Volume) -> None:
    """What was written to it is on the disk when this returns.

    :raises SetupError: it is not.
    """
    try:
        fd = os.open(volume.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise SetupError(f"{volume.path}: {error.strerror}") from error


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # EINVAL from file systems without it
            os.fsync(fd)
    finally:
        os.close(fd)
