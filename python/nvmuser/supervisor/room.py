"""Room on the file system of a state directory, as far as the supervisor warns of it."""

from __future__ import annotations

import os

from nvmuser.paths import StateDir

_NEARLY_FULL = 1 << 20
"""Bytes free under the state directory below which `status` warns."""


def warnings(state: StateDir) -> list[str]:
    """A warning when the state directory's file system is full."""
    try:
        facts = os.statvfs(state.root)
    except OSError as error:
        return [f"{state.root}: {error.strerror}"]
    free = facts.f_bavail * facts.f_frsize
    if free >= _NEARLY_FULL:
        return []
    return [f"{state.root}: its file system is full ({free} bytes free): changes may be refused; guests go on"]
