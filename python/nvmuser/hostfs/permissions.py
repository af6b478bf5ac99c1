"""Which permission this user lacks, in words.

The kernel says 'Permission denied' of a path; whose it is, and which directory on the way it was, is found here.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from nvmuser.errors import AccessError
from nvmuser.paths import StateDir

_WAY_OUT = "run this as that user or as root, or name another deployment with --state-dir"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn a PermissionError that names a path into the reason.

    :raises AccessError: this user lacks a permission.
    """
    try:
        yield
    except PermissionError as error:
        if not isinstance(error.filename, str | os.PathLike):
            raise
        raise denied(Path(error.filename)) from error


def check_ours(state: StateDir) -> None:
    """Refuse to write to another user's deployment, as root could: its supervisor could not open what root had made.

    :raises AccessError: it is another user's.
    """
    for place in (state.run, state.root):
        with contextlib.suppress(FileNotFoundError):
            owner = place.stat().st_uid
            if owner == os.geteuid():
                return
            user = _user(owner)
            raise AccessError(
                f"{state.root}: it is user {user}'s, and no supervisor of theirs runs, which would do this: start "
                f"it, or run this as that user: runuser -u {user} -- nvmuser …"
            )


def denied(path: Path) -> AccessError:
    """The error for a path to which the kernel has denied access."""
    for place in (*reversed(path.absolute().parents), path.absolute()):
        is_last = place == path.absolute()
        try:
            info = place.lstat()
        except OSError:
            break
        verb = _lacking(place, info, is_last)
        if verb:
            owner = f"it belongs to {_user(info.st_uid)}, mode {stat.S_IMODE(info.st_mode):04o}"
            return AccessError(f"{place}: user {_user(os.geteuid())} may not {verb} it ({owner}); {_WAY_OUT}")
    return AccessError(f"{path}: permission denied to user {_user(os.geteuid())}; {_WAY_OUT}")


def _lacking(place: Path, info: os.stat_result, is_last: bool) -> str:
    """What this user may not do with it; empty when nothing is missing."""
    needed = [("enter", os.X_OK)] if stat.S_ISDIR(info.st_mode) else []
    if is_last:
        needed += [("read", os.R_OK), ("write to", os.W_OK)]
    return next((verb for verb, mode in needed if not os.access(place, mode, effective_ids=True)), "")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
