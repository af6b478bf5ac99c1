"""What an act of the engine came to, in a form that travels over the control socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nvmuser.model.keys import Key
from nvmuser.reconcile.calls import Problem


@dataclass(frozen=True)
class Outcome:
    """What an act came to."""

    calls: int = 0
    problems: tuple[Problem, ...] = ()
    foreign: tuple[str, ...] = ()
    pending: bool = False
    """There is no target: it takes effect when one starts."""
    objects: tuple[dict[str, Any], ...] = ()
    """What a change declared, with identities."""

    def __add__(self, other: Outcome) -> Outcome:
        """What two targets' acts came to. The later problem of an object counts."""
        problems = {problem.object: problem for problem in (*self.problems, *other.problems)}
        return Outcome(
            self.calls + other.calls,
            tuple(problems.values()),
            (*self.foreign, *other.foreign),
            self.pending or other.pending,
            (*self.objects, *other.objects),
        )

    def with_problems(self, more: Mapping[Key, Problem]) -> Outcome:
        """With further problems, by their objects."""
        problems = {problem.object: problem for problem in self.problems} | dict(more)
        return replace(self, problems=tuple(problems.values()))

    def to_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "problems": [problem.to_json() for problem in self.problems],
            "foreign": list(self.foreign),
            "pending": self.pending,
            "objects": list(self.objects),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Outcome:
        return cls(
            calls=data["calls"],
            problems=tuple(Problem(Key.parse(problem["object"]), problem["message"]) for problem in data["problems"]),
            foreign=tuple(data["foreign"]),
            pending=data["pending"],
            objects=tuple(data["objects"]),
        )
