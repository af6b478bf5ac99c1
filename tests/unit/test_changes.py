"""Changes that wait for a supervisor: whose go together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Volume
from nvmuser.reconcile.outcome import Outcome
from nvmuser.supervisor.changes import Changes

TURN = asyncio.sleep
"""Of the loop, as `TURN(0)`; also where `asyncio.sleep` is another."""


class Engine:
    """Carries out nothing in thirty turns of the loop, and remembers how many changes came together."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def desired(self) -> Desired:
        return Desired()

    async def change_together(self, changes: list[Change], actors: Any) -> list[Outcome]:
        self.batches.append(len(changes))
        for _ in range(30):
            await TURN(0)
        return [Outcome() for _ in changes]


async def nothing(*_: Any) -> Any:
    raise AssertionError("no change here goes alone")


async def done() -> None:
    pass


def changes_of(engine: Any) -> Changes:
    return Changes(engine, asyncio.Lock(), nothing, done)


async def test_those_who_were_answered_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """While they come, one after the other; not in groups that take turns, as they began."""

    async def wait(_: float) -> None:
        for _turn in range(8):
            await TURN(0)

    monkeypatch.setattr(asyncio, "sleep", wait)
    engine = Engine()
    changes = changes_of(engine)

    async def client(number: int) -> None:
        for turn in range(8):
            for _ in range(6 * number):
                await TURN(0)
            await changes.carry_out(Change(create=(Volume(f"v{number}-{turn}", "null", size=512, volatile=True),)))

    await asyncio.gather(*(client(number) for number in range(4)))
    assert sum(engine.batches) == 32
    assert set(engine.batches[2:-1]) == {4}, engine.batches


async def test_who_is_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    changes = changes_of(engine)
    monkeypatch.setattr("nvmuser.supervisor.changes._GATHER_S", 3600.0)
    async with asyncio.timeout(10):
        for turn in range(3):
            await changes.carry_out(Change(create=(Volume(f"v{turn}", "null", size=512, volatile=True),)))
    assert engine.batches == [1, 1, 1]
