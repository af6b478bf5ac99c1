"""Checks of one deployment's files: paths, rights, sockets, logs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from nvmuser.doctor.check import Finding
from nvmuser.hostfs import unix_diag
from nvmuser.hostfs.permissions import explained
from nvmuser.hostfs.sockets import answers
from nvmuser.paths import SUN_PATH_MAX, StateDir

ROOM_FOR_NAME = 32
"""Bytes of a controller's name with which its socket's path must still fit into sockaddr_un. That of a longer name is
checked when the controller is declared."""

_ANOTHER = "choose another directory: --state-dir or NVMUSER_STATE"
_LOG_WANTED = 64 << 20
"""Bytes of one log file above which it is worth a look."""


def path_length(state: StateDir) -> Iterator[Finding]:
    """Sockets with the longest names fit."""
    longest = max(len(os.fsencode(state.socket("x" * ROOM_FOR_NAME, direct=direct))) for direct in (False, True))
    if longest <= SUN_PATH_MAX:
        yield Finding("socket paths", True, f"{longest} bytes at most, of {SUN_PATH_MAX}", needed=True)
        return
    text = f"up to {longest} bytes in {state.root}; UNIX allows {SUN_PATH_MAX}"
    yield Finding("socket paths", False, text, "choose a shorter directory: --state-dir or NVMUSER_STATE", needed=True)


def permissions(state: StateDir) -> Iterator[Finding]:
    """The state directory is ours alone, or can be made."""
    name = "permissions"
    existing = state.root
    while not os.path.lexists(existing):
        existing = existing.parent
    problem = _problem(state, existing)
    if problem:
        yield Finding(name, False, *problem, needed=True)
    elif existing.stat().st_uid != os.geteuid():
        text = f"{state.root} is user {existing.stat().st_uid}'s, whose supervisor does what root asks"
        yield Finding(name, True, text, needed=True)
    else:
        text = f"{state.root} is ours" if existing == state.root else f"{state.root} can be made"
        yield Finding(name, True, text, needed=True)


def _problem(state: StateDir, existing: Path) -> tuple[str, str] | None:
    """What is wrong with the nearest directory that exists, and the fix."""
    if not existing.is_dir():
        return f"{existing} is not a directory", _ANOTHER
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"cannot write to {existing}", _ANOTHER
    if existing != state.root:
        return None
    info = existing.stat()
    if info.st_uid != os.geteuid() != 0:
        return f"{existing} belongs to user {info.st_uid}", f"chown -R {os.geteuid()} {existing}"
    if info.st_mode & stat.S_IWOTH:
        return f"{existing} can be written by everybody", f"chmod o-w {existing}"
    return None


def stale_sockets(state: StateDir) -> Iterator[Finding]:
    """No socket is left that nobody serves.

    :raises AccessError: this user may not look.
    """
    with explained():
        stale = sorted(_stale(state.run))
    if stale:
        yield Finding("stale sockets", False, f"nobody answers on {len(stale)}", f"rm {' '.join(map(str, stale))}")
    else:
        yield Finding("stale sockets", True, "none")


def _stale(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):  # else it is not there, or not any more
            raise error

    among = unix_diag.listeners()  # once: there may be thousands
    for place, _, names in os.walk(directory, onerror=refuse):
        for path in (Path(place, name) for name in names):
            if path.is_socket() and not answers(path, among):
                yield path


def log_sizes(state: StateDir) -> Iterator[Finding]:
    """Logs do not fill the disk.

    :raises AccessError: this user may not look.
    """
    with explained():
        try:
            paths = sorted(state.logs / name for name in os.listdir(state.logs))
        except (FileNotFoundError, NotADirectoryError):
            return
        sizes = {path: path.stat().st_size for path in paths if path.match("*.log*") and path.is_file()}
    total = f"{sum(sizes.values()) / (1 << 20):.1f} MiB in {state.logs}"
    large = [path for path, size in sizes.items() if size > _LOG_WANTED]
    if large:
        text = f"{total}; large: {', '.join(path.name for path in large)}"
        yield Finding("logs", False, text, f"truncate --size 0 {' '.join(map(str, large))}")
    elif sizes:
        yield Finding("logs", True, total)
