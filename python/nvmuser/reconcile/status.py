"""How what is wanted and what SPDK has compare, object by object. Pure; nothing here repairs anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.reconcile import mirrors, remotes
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.calls import Plan

NO_ROUTES = remotes.Routes()


@dataclass(frozen=True)
class Status:
    """Keys of objects, by how they fare, and what is not ours in words."""

    in_sync: tuple[Key, ...]
    drifted: tuple[Key, ...]
    """There, but not as it should be: the next act repairs it, or reports why it cannot."""
    missing: tuple[Key, ...]
    foreign: tuple[str, ...]
    conflicts: tuple[str, ...]
    space: tuple[str, ...] = ()
    """Where more is promised to volumes than there is, in words."""
    mirrors: tuple[mirrors.Mirror, ...] = ()
    """Those that lack a member, or are rebuilding one."""
    remotes: tuple[remotes.Way, ...] = ()
    """How each is reached."""
    away: tuple[str, ...] = ()
    """What of Ceph does not answer, in words: I/O to it waits."""

    def to_json(self) -> dict[str, Any]:
        return {
            "in_sync": list(map(str, self.in_sync)),
            "drifted": list(map(str, self.drifted)),
            "missing": list(map(str, self.missing)),
            "foreign": list(self.foreign),
            "conflicts": list(self.conflicts),
            "space": list(self.space),
            "mirrors": [mirror.to_json() for mirror in self.mirrors],
            "remotes": [way.to_json() for way in self.remotes],
            "away": list(self.away),
        }


def together(found: Sequence[Status], wanted: Sequence[Key]) -> Status:
    """How several targets fare. What is wanted, and on none of them, is missing.

    :param wanted: keys of everything.
    """
    drifted = {key for one in found for key in one.drifted}
    missing = {key for one in found for key in one.missing} - drifted
    in_sync = {key for one in found for key in one.in_sync} - drifted - missing
    there = in_sync | drifted
    return Status(
        in_sync=tuple(key for key in wanted if key in in_sync),
        drifted=tuple(key for key in wanted if key in drifted),
        missing=tuple(key for key in wanted if key not in there),
        foreign=tuple(text for one in found for text in one.foreign),
        conflicts=tuple(text for one in found for text in one.conflicts),
        space=tuple(text for one in found for text in one.space),
        mirrors=tuple(mirror for one in found for mirror in one.mirrors),
        remotes=tuple(way for one in found for way in one.remotes),
        away=tuple(dict.fromkeys(text for one in found for text in one.away)),
    )


def status_of(desired: Desired, actual: Actual, plan: Plan, routes: remotes.Routes = NO_ROUTES) -> Status:
    """`plan` is the one from `actual` to `desired`, made with `routes`."""
    created = {call.object for call in plan.calls if call.verb == "create"} | plan.waiting
    touched = {call.object for call in plan.calls} | {problem.object for problem in (*plan.conflicts, *plan.restart)}
    wanted = [wanted.key for wanted in desired.wanted()]
    present_controllers = {
        controller.key
        for controller in desired.controllers()
        if (found := actual.subsystems.get(controller.nqn)) and found.serial == controller.serial
    }
    missing = {key for key in wanted if key in created and key not in present_controllers}
    touched |= plan.waiting & present_controllers
    drifted = {key for key in wanted if key in touched} - missing
    apart = missing | drifted
    return Status(
        in_sync=tuple(key for key in wanted if key not in apart),
        drifted=tuple(key for key in wanted if key in drifted),
        missing=tuple(key for key in wanted if key in missing),
        foreign=plan.foreign,
        conflicts=tuple(map(str, (*plan.conflicts, *plan.restart))),
        mirrors=tuple(mirror for mirror in mirrors.each(desired, actual) if mirror.stale),
        remotes=tuple(remotes.ways(desired, actual, routes)),
    )
