"""Checks of what is promised to volumes against what is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from nvmuser.doctor.check import Finding
from nvmuser.hostfs.space import file_systems
from nvmuser.paths import StateDir
from nvmuser.reconcile.space import pools
from nvmuser.supervisor import control


def space(state: StateDir) -> Iterator[Finding]:
    """Volumes can be written to their ends. Pools are looked at where a target runs."""
    desired = control.load(state)
    actual = asyncio.run(control.actual(state)) if desired.pools() else None
    for found in [*file_systems(desired.volumes()), *(pools(desired, actual).values() if actual else ())]:
        fix = "free some space, grow what it is on, or delete volumes and snapshots" if found.short else ""
        yield Finding("space", not found.short, str(found), fix)
