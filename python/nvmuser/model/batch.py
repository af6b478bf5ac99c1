"""Which changes can be carried out together: those of which each may still be refused and undone, whatever becomes of
the others.

Pure. One that depends on what another writes does not go with it: undoing that one would leave it without its ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import TargetSettings, Volume

MOST = 64
"""Changes in one batch: who comes first is not to wait for a thousand others."""


def joined(changes: Sequence[Change]) -> Change:
    """One change of all that these want; what may be lost is as those with deletions have it."""
    if len(changes) == 1:
        return changes[0]
    deleting = [change for change in changes if change.delete]
    return Change(
        create=tuple(one for change in changes for one in change.create),
        update=tuple(one for change in changes for one in change.update),
        delete=tuple(key for change in changes for key in change.delete),
        wipe=any(change.wipe for change in deleting),
        expect=tuple(one for change in changes for one in change.expect),
        keep_files=any(change.keep_files for change in deleting),
    )


@dataclass
class _Touched:
    writes: set[Key]
    reads: set[Key]


def _touched(desired: Desired, change: Change) -> _Touched:
    reads = {key for one in (*change.create, *change.update) for key in one.depends_on}
    for key in change.keys:
        if entry := desired.entries.get(key):
            reads |= {*entry.object.depends_on}
    return _Touched(change.keys, reads)


def _goes_alone(change: Change) -> bool:
    """A target is run otherwise, or somebody far away decides whether a volume can be had, and takes their time."""
    far = any(isinstance(one, Volume) and (one.remote or one.cluster) for one in (*change.create, *change.update))
    return far or any(key.kind == TargetSettings.kind for key in change.keys)


def together(desired: Desired, waiting: Sequence[Change]) -> list[int]:
    """Which of those that wait can be carried out now, by their numbers: the first, and what goes with it.

    None overtakes one that writes what it depends on: they keep their order.
    """
    chosen: list[int] = []
    passed = _Touched(set(), set())
    flags: tuple[bool, bool] | None = None
    for number, change in enumerate(waiting):
        touched = _touched(desired, change)
        alone = _goes_alone(change)
        mine = (change.wipe, change.keep_files) if change.delete else flags
        clash = touched.writes & (passed.writes | passed.reads) or touched.reads & passed.writes
        if chosen and (alone or clash or (flags is not None and mine != flags)):
            passed.writes |= touched.writes
            passed.reads |= touched.reads
            continue
        chosen.append(number)
        passed.writes |= touched.writes
        passed.reads |= touched.reads
        flags = mine
        if alone or len(chosen) == MOST:
            break
    return chosen
