"""What an operator may not declare, although the API as a process could do it: files of the host that are none of ours.

A volume on `/dev/sda` or `/etc/shadow`, given to a guest, is the host itself. Only an admin may name paths outside the
directory of volumes.
"""

from __future__ import annotations

import os
from pathlib import Path

from nvmuser.api.auth import Principal
from nvmuser.api.problems import Problem
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import AnyObject, Remote, TargetSettings, Volume
from nvmuser.paths import StateDir


def check(principal: Principal, state: StateDir, desired: Desired, change: Change) -> None:
    """:raises Problem: they may not."""
    if principal.may("admin"):
        return
    for one in (*change.create, *change.update):
        entry = desired.entries.get(one.key)
        known = _paths(entry.object) if entry else set()
        for path in _paths(one) - known:
            if isinstance(one, Remote) or not _inside(path, state.volumes):
                raise Problem(403, "forbidden", f"{one.key.words}: {path} is a file of the host: that needs admin")
    kinds = {one.kind for one in (*change.create, *change.update)} | {key.kind for key in change.delete}
    if TargetSettings.kind in kinds:
        raise Problem(403, "forbidden", f"{principal.name} is {principal.role}: targets need admin")


def _paths(one: AnyObject) -> set[str]:
    if isinstance(one, Volume):
        return {one.path} - {""}
    return set(one.key_files.values()) if isinstance(one, Remote) else set()


def _inside(path: str, directory: Path) -> bool:
    """Also where a link leads."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)) and os.path.isabs(path)
