"""A plan while it is being made: what both directions of the planner add to. Owns the numbering of calls, no rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nvmuser.model.keys import Key
from nvmuser.reconcile.calls import NO_NEEDS, Call, Needs, Problem, Verb
from nvmuser.rpc.methods import Request


@dataclass
class Draft:
    """Calls are known by their place in `calls`."""

    calls: list[Call] = field(default_factory=list)
    conflicts: list[Problem] = field(default_factory=list)
    waiting: set[Key] = field(default_factory=set)
    adopted: set[Key] = field(default_factory=set)
    _released: dict[str, list[int]] = field(default_factory=dict)
    """bdev → calls that must finish before its last user that goes is gone."""

    def add(
        self,
        verb: Verb,
        request: Request,
        key: Key,
        after: Iterable[int] = (),
        *,
        needs: Needs = NO_NEEDS,
        provisions: bool = False,
    ) -> int:
        """Add a call, return its number."""
        self.calls.append(Call(request, key, verb, tuple(dict.fromkeys(after)), provisions, needs))
        return len(self.calls) - 1

    def conflict(self, key: Key, message: str) -> None:
        self.conflicts.append(Problem(key, message))

    def release(self, bdev: str, call: int) -> None:
        """Record that a user of a bdev goes with a call."""
        self._released.setdefault(bdev, []).append(call)

    def released(self, bdev: str | None) -> list[int]:
        """The calls after which no user that goes has a bdev; none for a bdev that is not there."""
        return list(self._released.get(bdev, ())) if bdev else []
