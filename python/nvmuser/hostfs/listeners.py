"""The directories of SPDK's listeners: made before SPDK needs them, tidied after.

Owns the directory of each controller under the state directory; a directory of somebody else is refused.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nvmuser.errors import ConflictError
from nvmuser.hostfs.sockets import answers, check_socket_path, remove_stale
from nvmuser.hostfs.unix_diag import Listeners
from nvmuser.paths import StateDir


def check_paths(state: StateDir, controller: str) -> None:
    """:raises UsageError: a socket of this controller would have too long a path."""
    for direct in (False, True):
        check_socket_path(state.socket(controller, direct=direct))


def prepare(state: StateDir, controller: str, among: Listeners | None = None) -> None:
    """The directory is there, ours, and without a socket that nobody serves.

    :param among: who listens, where there are many controllers; None: ask now.
    :raises ConflictError: it is somebody else's, or somebody answers in it.
    """
    directory = os.fspath(state.target_dir(controller))
    try:
        try:
            os.mkdir(directory, 0o750)
            return  # new, so empty and ours
        except FileNotFoundError:
            os.makedirs(directory, 0o750)
            return
        except FileExistsError:
            owner = os.stat(directory).st_uid
    except OSError as error:
        raise ConflictError(f"{directory}: {error.strerror}") from error
    if owner != os.geteuid():
        raise ConflictError(f"{directory}: belongs to user {owner}; use another --state-dir")
    remove_stale(Path(directory, "cntrl"), among)


def tidy(directory: Path, among: Listeners | None = None) -> None:
    """Remove the directory of a controller that is gone.

    :param among: as of `prepare`.
    """
    socket = directory / "cntrl"
    with contextlib.suppress(OSError):  # not empty: whatever is in it is not ours to remove
        if socket.exists() and not answers(socket, among):
            socket.unlink()
        directory.rmdir()
