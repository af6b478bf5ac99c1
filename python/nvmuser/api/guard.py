"""What an operator may not declare, although the API as a process could do it: files of the host that are none of ours,
and commands that it runs.

A volume on `/dev/sda` or `/etc/shadow`, given to a guest, is the host itself. Only an admin may name such things.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from nvmuser.api.auth import Principal
from nvmuser.api.problems import Problem
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import AnyObject, Cluster, Remote, TargetSettings, Volume
from nvmuser.paths import StateDir

HOST_FIELDS: Mapping[str, tuple[str, ...]] = {
    Volume.kind: ("path", "key_file", "key_command"),
    Remote.kind: Remote.keys,
    Cluster.kind: ("conf", "keyring"),
}
"""By kind, the fields that name files of the host, or commands that it runs."""


def check(principal: Principal, state: StateDir, desired: Desired, change: Change) -> None:
    """:raises Problem: they may not."""
    if principal.may("admin"):
        return
    for one in (*change.create, *change.update):
        entry = desired.entries.get(one.key)
        for field in HOST_FIELDS.get(one.kind, ()):
            value = getattr(one, field)
            if value in (_default(one, field), getattr(entry.object, field) if entry else ""):
                continue
            if field != "path" or not _inside(value, state.volumes):
                raise Problem(403, "forbidden", f"{one.key.words}: {field} {value} is the host's: that needs admin")
    kinds = {one.kind for one in (*change.create, *change.update)} | {key.kind for key in change.delete}
    if TargetSettings.kind in kinds:
        raise Problem(403, "forbidden", f"{principal.name} is {principal.role}: targets need admin")


def _default(one: AnyObject, field: str) -> object:
    return next(known.default for known in dataclasses.fields(one) if known.name == field)


def _inside(path: str, directory: Path) -> bool:
    """Also where a link leads."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)) and os.path.isabs(path)
