"""What a plan is made of: calls with what they depend on, and what stands in their way. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any, Literal

from nvmuser.model.keys import Key
from nvmuser.rpc.methods import Request

Verb = Literal["create", "add", "change", "limit", "grow", "inflate", "start", "rebuild", "replace", "delete"]
"""What a call does to its object: `create` makes the object itself, `add` a part of it."""


@dataclass(frozen=True)
class Needs:
    """What a call takes besides SPDK: made ready before it, looked at when it fails."""

    file: str = ""
    """Path of a file that SPDK opens, which no other program may have locked."""
    directory: bool = False
    """The directory of its controller's listener."""
    events: bool = False
    """A core's events for asynchronous I/O (fs.aio-max-nr in Linux's Documentation/admin-guide/sysctl/fs.rst)."""
    path: tuple[str, int] | None = None
    """Address and port of a remote's listener."""
    seen: str = ""
    """SPDK's name of a bdev on whose abilities the request depends: only one that is there shows them."""
    takes_long: bool = False
    """All of a device may have to be written: there is no deadline."""


NO_NEEDS = Needs()


@dataclass(frozen=True)
class Call:
    """One request, and which others (by their place in the plan) must have succeeded before."""

    request: Request
    object: Key
    """What it is for."""
    verb: Verb = "create"
    after: tuple[int, ...] = ()
    provisions: bool = False
    """Its success makes the object's data: never to be made again."""
    needs: Needs = NO_NEEDS


@dataclass(frozen=True)
class Problem:
    """What stands in the way of an object; no call can fix it."""

    object: Key
    message: str

    def __str__(self) -> str:
        return f"{self.object.words}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        return {"object": str(self.object), "message": self.message}


@dataclass(frozen=True)
class Plan:
    """What leads from what SPDK has to what is wanted, and what does not."""

    calls: tuple[Call, ...] = ()
    conflicts: tuple[Problem, ...] = ()
    waiting: frozenset[Key] = frozenset()
    """Objects that come by themselves, or cannot come before something else has."""
    foreign: tuple[str, ...] = ()
    adopted: frozenset[Key] = frozenset()
    """Objects that hold data, are there, and are ours."""
    restart: tuple[Problem, ...] = ()
    """What only another process can fix: how the target is run."""

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

    def runnable(self, problems: Container[Key], is_there: Callable[[str], object]) -> list[Call]:
        """The calls without those for an object that has a problem, and what comes after them. Deletions stay.

        :param is_there: whether a bdev can be seen; what depends on one that cannot comes with a later plan.
        """
        left: list[Call] = []
        place: dict[int, int] = {}
        for number, call in enumerate(self.calls):
            blocked = call.object in problems and call.verb != "delete"
            blocked |= bool(call.needs.seen) and not is_there(call.needs.seen)
            if blocked or any(before not in place for before in call.after):
                continue
            place[number] = len(left)
            left.append(replace(call, after=tuple(place[before] for before in call.after)))
        return left
