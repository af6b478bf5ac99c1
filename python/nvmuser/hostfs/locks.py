"""Locks on the backing files of volumes: a writer holds them for as long as it may write.

SPDK takes no lock. The lock is therefore put on SPDK's own open file (`pidfd_getfd` gives us its descriptor,
and flock and OFD locks belong to the open file, not to a process): it lives exactly as long as the target has
the file open, also when the supervisor dies. Both kinds of lock are taken, because tools differ: QEMU looks
at OFD locks, others at flock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from nvmuser.errors import ConflictError, NotFoundError, SetupError
from nvmuser.hostfs.block_devices import identity, uses

_PIDFD_GETFD = 438
"""The system call's number, the same on every architecture; Python has no name for it."""

_END_GRACE = 1.0

_FLOCK = "hhqqi4x"
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""

_libc = ctypes.CDLL(None, use_errno=True)


def check_free(path: str) -> None:
    """:raises ConflictError: somebody holds a lock on it, who is named if the kernel knows.

    A block device that this machine has mounted, or made a part of LVM or RAID, is held too.

    :raises NotFoundError: it is missing.
    :raises SetupError: it may not be opened.
    """
    with _opened(path) as fd:
        if not _try_lock(fd):
            raise ConflictError(f"{path}: open elsewhere already{_holder(fd)}; end that first")


def lock_for(pid: int, paths: Iterable[str]) -> list[tuple[str, ConflictError]]:
    """Lock what process `pid` has open of `paths`. What it has locked already stays so.

    Returns each path that somebody else has locked, with the error. A process that has ended has nothing open.

    :raises SetupError: this machine does not let us look at, or take, that process's descriptors.
    """
    wanted = {os.path.realpath(path): path for path in paths}
    if not wanted:
        return []
    try:
        with _pidfd(pid) as pidfd:
            try:
                return _lock_open_files(pid, pidfd, wanted)
            except (OSError, SetupError):
                # A process that is about to end may not be looked at any more, not even by its owner (EACCES).
                if _has_ended(pidfd):
                    return []
                raise
    except ProcessLookupError:
        return []
    except OSError as error:
        raise SetupError(f"cannot look at what process {pid} has open: {error.strerror}") from error


def _lock_open_files(pid: int, pidfd: int, wanted: dict[str, str]) -> list[tuple[str, ConflictError]]:
    failures: list[tuple[str, ConflictError]] = []
    for number, path in _open_files(pid):
        if path not in wanted:
            continue
        fd = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
        if fd < 0:
            code = ctypes.get_errno()
            if code == errno.EBADF:  # closed meanwhile
                continue
            raise SetupError(f"{path}: cannot lock it for process {pid}: {os.strerror(code)}")
        try:
            if not _try_lock(fd):
                reason = f"{path}: open elsewhere already{_holder(fd)}; end that first"
                failures.append((wanted[path], ConflictError(reason)))
        finally:
            os.close(fd)
    return failures


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    number = identity(path)
    try:
        # Exclusive, a block device is claimed as mount(2) does.
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if isinstance(number, int) else 0))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        if isinstance(number, int) and error.errno == errno.EBUSY:
            what = ", ".join(uses(number)) or f"`lsblk {path}` may show by what"
            raise ConflictError(f"{path}: in use by this machine: {what}; end that first") from error
        raise SetupError(f"{path}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _has_ended(pidfd: int) -> bool:
    """Whether the last of its threads is about to leave: waited for, since what comes first is that it may not be
    looked at."""
    ready, _, _ = select.select([pidfd], [], [], _END_GRACE)
    return bool(ready)


def _open_files(pid: int) -> Iterator[tuple[int, str]]:
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield int(name), os.readlink(f"{directory}/{name}")


def _try_lock(fd: int) -> bool:
    """Both locks, until the open file is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            fcntl.flock(fd, fcntl.LOCK_UN)  # else it is us whom the kernel names as the holder
            return False
        raise
    return True


def _holder(fd: int) -> str:
    """Who holds the lock, in words."""
    info = os.fstat(fd)
    device = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        # "1: FLOCK ADVISORY WRITE 4242 fe:00:1234 0 EOF"; waiters have "->" in the second place
        if len(fields) >= 6 and fields[5] == device and fields[4] not in ("-1", "0"):
            with contextlib.suppress(OSError):
                return f" (locked by process {fields[4]}, {_command(fields[4])})"
    # An OFD lock has no process, and the one that took a lock may have ended while the open file lives on in another.
    users = list(_users(info, fd))
    if users:
        return f" (open in {', '.join(f'process {pid}, {name}' for pid, name in users)})"
    return " (by a process that this user may not see)"


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _users(info: os.stat_result, own: int) -> Iterator[tuple[str, str]]:
    """Pid and name of each process that has the file open, but for our descriptor `own`."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for number in os.listdir(f"/proc/{pid}/fd"):
                if pid == str(os.getpid()) and number == str(own):
                    continue
                with contextlib.suppress(OSError):  # closed meanwhile
                    if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), info):
                        yield pid, _command(pid)
                        break
