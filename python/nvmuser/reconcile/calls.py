"""What a plan is made of: calls with what they depend on, and what stands in their way. Plain data."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

from nvmuser.model.keys import Key
from nvmuser.rpc.methods import Request


@dataclass(frozen=True)
class Call:
    """One request, and which others (by their place in the plan) must have succeeded before."""

    request: Request
    object: Key
    """What it is for."""
    after: tuple[int, ...] = ()
    provisions: bool = False
    """Its success makes the object's data: never to be made again."""
    verb: str = "create"


@dataclass(frozen=True)
class Problem:
    """What stands in the way of an object; no call can mend it."""

    object: Key
    message: str

    def __str__(self) -> str:
        return f"{self.object.words}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        return {"object": str(self.object), "message": self.message}


@dataclass(frozen=True)
class Plan:
    calls: tuple[Call, ...] = ()
    conflicts: tuple[Problem, ...] = ()
    waiting: frozenset[Key] = frozenset()
    """Objects that come by themselves, or cannot come before something else has."""
    foreign: tuple[str, ...] = ()
    adopted: frozenset[Key] = frozenset()
    """Objects that hold data, are there, and are ours."""
    restart: tuple[Problem, ...] = ()
    """What only another process can mend: how the target is run."""

    def waves(self) -> list[list[Call]]:
        """What can be in flight together, in order."""
        level: list[int] = []
        waves: list[list[Call]] = []
        for call in self.calls:
            mine = max((level[before] + 1 for before in call.after), default=0)
            level.append(mine)
            if mine == len(waves):
                waves.append([])
            waves[mine].append(call)
        return waves

    def runnable(self, problems: Container[Key]) -> list[Call]:
        """The calls without those for an object that has a problem, and what comes after them. Deletions stay."""
        if not problems:
            return list(self.calls)
        left: list[Call] = []
        place: dict[int, int] = {}
        for number, call in enumerate(self.calls):
            blocked = call.object in problems and call.verb != "delete"
            if blocked or any(before not in place for before in call.after):
                continue
            place[number] = len(left)
            left.append(replace(call, after=tuple(place[before] for before in call.after)))
        return left
