"""The changes that bring controllers from one target to another. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from nvmuser.model import placement
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired


def moves(desired: Desired, names: Collection[str], to: str) -> list[Change]:
    """One change after the other, so that each guest waits for its own move; what hangs together goes at once. None for
    what is there already.

    :raises NvmuserError: they cannot go there: nothing is to be done then.
    """
    going = [one for one in map(desired.controller, dict.fromkeys(names)) if one.target != to]
    after = dict(desired.entries)
    after |= {one.key: replace(after[one.key], object=replace(one, target=to)) for one in going}
    placement.check(Desired(after))
    placement.check_moves(desired, Desired(after))
    together = [[one for one in group.controllers if one in going] for group in placement.groups(desired)]
    return [
        Change(update=tuple(replace(one, target=to) for one in some), expect=tuple(some))
        for some in sorted(filter(None, together), key=lambda some: going.index(some[0]))
    ]


def on_target(desired: Desired, target: str) -> list[str]:
    """Names of the controllers of a target."""
    return [controller.name for controller in desired.controllers() if controller.target == target]
