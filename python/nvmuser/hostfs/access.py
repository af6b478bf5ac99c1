"""Who may connect to a controller's socket: its owner, its group, and the directory that it is made in.

Owns the group and the mode of a guest's socket directory. The endpoint makes the socket in it with mode 0660,
and a directory with the set-group-ID bit hands its own group on, so that the socket never has another, not
even for a moment. Owner and another mode come right after.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from nvmuser.errors import ConflictError, UsageError
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir

_PRIVATE, _SHARED = 0o750, 0o2750
_EVERYBODY = "0666"


def group_of(controller: Controller) -> int:
    """The group that gets in; ours when none is named.

    :raises UsageError: there is no such user or group.
    """
    try:
        if controller.group:
            return grp.getgrnam(controller.group).gr_gid
        return pwd.getpwnam(controller.owner).pw_gid if controller.owner else os.getegid()
    except KeyError:
        what = f"group {controller.group}" if controller.group else f"user {controller.owner}"
        raise UsageError(f"controller {controller.name}: there is no {what} on this machine") from None


def grant(state: StateDir, controller: Controller) -> None:
    """Make the directory, or put it right. What exists with other rights is changed, also a socket in it.

    :raises UsageError: the group is unknown, or not ours to give.
    :raises ConflictError: the directory is another user's.
    """
    shared = bool(controller.owner or controller.group or controller.mode == _EVERYBODY)
    directory = state.guest_dir(controller.name)
    try:
        try:
            info = directory.stat()
        except FileNotFoundError:
            if not shared:
                return  # the endpoint makes it
            directory.mkdir(mode=_PRIVATE, parents=True)
            info = directory.stat()
        group = group_of(controller)
        if info.st_uid != os.geteuid():
            raise ConflictError(f"{directory}: belongs to user {info.st_uid}; use another --state-dir")
        mode = _SHARED if shared else _PRIVATE
        mode |= stat.S_IXOTH if controller.mode == _EVERYBODY else 0
        if (info.st_gid, stat.S_IMODE(info.st_mode)) != (group, mode):
            os.chown(directory, -1, group)
            directory.chmod(mode)  # after chown, which clears the bit
            socket = directory / "cntrl"
            if socket.is_socket():
                os.chown(socket, -1, group)
        if shared:
            for parent in (state.root, state.run, directory.parent):
                _let_through(parent)
    except PermissionError as error:
        who = controller.group or controller.owner
        raise UsageError(
            f"controller {controller.name}: {error.strerror}: only root, or a member, can let {who} in"
        ) from error


def settle(state: StateDir, controller: Controller) -> None:
    """Set owner and mode of the socket that the endpoint has made. Nothing happens where there is none.

    :raises UsageError: the user is unknown.
    :raises ConflictError: it is not ours to give to this user.
    """
    socket, root = state.socket(controller.name), os.geteuid() == 0
    try:
        info = socket.lstat()
        uid = pwd.getpwnam(controller.owner).pw_uid if controller.owner and root else os.geteuid()
        if info.st_uid != uid:
            os.chown(socket, uid, -1)
        if stat.S_IMODE(info.st_mode) != int(controller.mode, 8):
            socket.chmod(int(controller.mode, 8))
    except FileNotFoundError:
        return
    except KeyError:
        raise UsageError(f"controller {controller.name}: there is no user {controller.owner} on this machine") from None
    except OSError as error:
        raise ConflictError(f"{socket}: {error.strerror}") from error


def _let_through(directory: Path) -> None:
    """Others may pass, not look: each directory on the way to a socket needs that."""
    mode = stat.S_IMODE(directory.stat().st_mode)
    if not mode & stat.S_IXOTH:
        directory.chmod(mode | stat.S_IXOTH)
