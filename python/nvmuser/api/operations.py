"""Acts that take long: begun by one request, looked at by others.

Kept in this process alone: what an act has changed is in the store, and its events say so. One that is forgotten
because the API has ended goes on in the supervisor, or was not begun.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nvmuser.api.problems import Problem, of_error
from nvmuser.api.routing import Call, Reply
from nvmuser.errors import NvmuserError

_KEPT = 1000
_RUNNING_MOST = 256

Act = Callable[[], Awaitable[Reply]]


@dataclass
class Operation:
    """One act. Times in seconds since the epoch."""

    id: int
    what: str
    who: str
    began: float
    done: int = 0
    """Steps that are done, of `total`."""
    total: int = 1
    ended: float | None = None
    result: Any = None
    problem: dict[str, Any] | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def state(self) -> str:
        if self.ended is None:
            return "running"
        return "failed" if self.problem else "done"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "what": self.what,
            "who": self.who,
            "state": self.state,
            "began": round(self.began, 3),
            "ended": round(self.ended, 3) if self.ended else None,
            "progress": {"done": self.done, "total": self.total},
            "result": self.result,
            "problem": self.problem,
        }


class Operations:
    """Those of this process: what runs, and the last thousand that have ended."""

    def __init__(self) -> None:
        self._known: dict[int, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._next = int(time.time() * 1000)

    def all(self) -> list[Operation]:
        return list(self._known.values())

    def get(self, number: str) -> Operation:
        """:raises Problem: there is none, or none any more."""
        found = self._known.get(int(number)) if number.isascii() and number.isdigit() and len(number) < 19 else None
        if found is None:
            raise Problem(404, "not-found", f"operation {number[:40]}: no such operation, or it ended long ago")
        return found

    def begin(self, what: str, who: str, act: Callable[[Operation], Awaitable[Any]], total: int = 1) -> Operation:
        """Start one.

        :raises Problem: too many run already.
        """
        if len(self._tasks) >= _RUNNING_MOST:
            raise Problem(429, "rate", f"{_RUNNING_MOST} operations run already", headers={"Retry-After": "1"})
        self._next += 1
        one = self._known[self._next] = Operation(self._next, what, who, time.time(), total=total)
        ended = [number for number, known in self._known.items() if known.ended]
        for number in ended[: max(0, len(self._known) - _KEPT)]:
            del self._known[number]
        task = asyncio.create_task(self._run(one, act))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return one

    @staticmethod
    async def _run(one: Operation, act: Callable[[Operation], Awaitable[Any]]) -> None:
        try:
            one.result = await act(one)
            one.done = one.total
        except Problem as problem:
            one.problem = problem.to_json()
        except (NvmuserError, OSError) as error:
            one.problem = of_error(error).to_json()
        except BaseException as error:
            one.problem = Problem(500, "error", f"{type(error).__name__}: {error}").to_json()
            raise
        finally:
            one.ended = time.time()
            one.finished.set()


async def in_background(operations: Operations, call: Call, what: str, act: Act) -> Reply:
    """Carry out an act; as an operation where the asker does not want to wait for it."""
    if "respond-async" not in call.header("prefer").lower():
        return await act()

    async def result(one: Operation) -> Any:
        return (await act()).data

    return accepted(operations.begin(what, call.principal.name, result))


def accepted(one: Operation) -> Reply:
    """The answer to who does not wait."""
    return Reply(one.to_json(), 202, {"Location": f"/v1/operations/{one.id}"})
