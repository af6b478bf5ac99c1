"""UNIX sockets in the file system: path limits, who answers, and the removal of what nobody serves any more.

Owns no connection. A socket is removed only when it is a socket, it is ours (its owner is us, or we are
root), and nobody accepts at it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from nvmuser.errors import ConflictError, UsageError
from nvmuser.hostfs.unix_diag import Listeners, is_listening
from nvmuser.paths import SUN_PATH_MAX


def check_socket_path(path: Path) -> None:
    """:raises UsageError: the path does not fit into a socket address."""
    size = len(os.fsencode(path))
    if size > SUN_PATH_MAX:
        raise UsageError(
            f"{path}: {size} bytes, a UNIX socket's path may have {SUN_PATH_MAX}; "
            "use a shorter name or a shorter --state-dir"
        )


def answers(path: Path, among: Listeners | None = None) -> bool:
    """Does somebody listen at `path`? Answered without a connection, which SPDK would take for a guest; by one only
    where nobody is seen to listen (another network namespace). A full backlog counts as yes: somebody is there, only
    busy.

    :param among: who listens (`unix_diag.listeners`), where many sockets are looked at; None: ask now.
    """
    if is_listening(path, among):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EINPROGRESS, errno.EACCES, errno.EPERM, errno.EPROTOTYPE)
        return True


def remove_stale(path: Path, among: Listeners | None = None) -> bool:
    """Remove a socket that nobody serves. True when there was one.

    :param among: as of `answers`.
    :raises ConflictError: somebody answers, it is not a socket, or it belongs to somebody else.
    """
    try:
        info = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(info.st_mode):
        raise ConflictError(f"{path}: exists and is not a socket; move it away")
    if info.st_uid != os.geteuid() and os.geteuid() != 0:
        raise ConflictError(f"{path}: belongs to user {info.st_uid}; use another --state-dir")
    if answers(path, among):
        raise ConflictError(f"{path}: somebody answers at this socket already")
    path.unlink(missing_ok=True)
    return True


def listen_unix(path: Path, mode: int) -> socket.socket:
    """A listening socket at `path`, never with more rights than `mode`, not even for a moment.

    :raises ConflictError: see `remove_stale`.
    """
    check_socket_path(path)
    remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o777 & ~mode)
    try:
        listener.bind(os.fspath(path))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise ConflictError(f"{path}: {error.strerror}") from error
    finally:
        os.umask(previous)
    return listener
