"""A guest with two disks on two targets: what happens to one disk's target, or moves it, the other does not notice."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from world import World, both, kill, started

from nvmuser.bench.measure.progress import Silent
from nvmuser.bench.scenarios.move import MovePlan, measure
from nvmuser.model.change import Change
from nvmuser.model.objects import TargetSettings
from nvmuser.supervisor import control

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOVES = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Controller `two` is on a target of its own, to which it has moved."""
    async with started(tmp_path_factory.mktemp("t")) as world:
        await change(world, Change(create=(TargetSettings("fast", profile="eco"),)))
        before = await world.status()
        await move(world, "two", "fast")
        await recovered(world, before, "two")
        yield world


async def change(world: World, change: Change) -> None:
    outcome = await world.deployment.control.call("change", {"change": change.to_json()}, timeout=60)
    assert (outcome["problems"], outcome["pending"]) == ([], False)


async def move(world: World, name: str, target: str) -> None:
    one = control.load(world.deployment.state).controller(name)
    await change(world, Change(update=(replace(one, target=target),)))


def recoveries(status: dict[str, Any]) -> dict[str, int]:
    return {one["controller"]: one["recoveries"] for one in both(status)}


async def recovered(world: World, before: dict[str, Any], name: str) -> None:
    """The driver of one controller works again."""
    count = recoveries(before)[name]
    await world.until(lambda now: recoveries(now).get(name, 0) > count)


async def test_a_target_that_is_killed_is_its_own_guests_loss(world: World) -> None:
    async def strike() -> None:
        for _ in range(3):
            before = await world.status()
            kill({"target": before["targets"]["fast"]}, "target")
            await recovered(world, before, "two")
            assert recoveries(await world.status())["one"] == recoveries(before)["one"]

    await world.survives(strike)


async def test_moves_to_and_fro(world: World) -> None:
    async def strike() -> None:
        for number in range(MOVES):
            before = await world.status()
            await move(world, "one", ("fast", "spdk")[number % 2])
            await recovered(world, before, "one")
            assert recoveries(await world.status())["two"] == recoveries(before)["two"]

    await world.survives(strike)


async def test_a_target_that_hangs_is_killed_when_it_does_not_let_go(world: World) -> None:
    """Stopped in its tracks, so that it answers nobody; its other guests recover as from a crash."""

    async def strike() -> None:
        before = await world.status()
        os.kill(before["targets"]["fast"]["pid"], signal.SIGSTOP)
        await move(world, "two", "spdk")
        await recovered(world, before, "two")
        assert recoveries(await world.status())["one"] == recoveries(before)["one"]
        await world.until(lambda now: now["targets"]["fast"]["ready"])
        before = await world.status()
        await move(world, "two", "fast")
        await recovered(world, before, "two")

    await world.survives(strike)


@pytest.mark.matrix
async def test_a_hundred_moves_and_ten_deaths_next_door() -> None:
    outcome = await measure(MovePlan(rounds=100, kills=10), Silent())
    assert outcome.wrong is None
    assert len(outcome.calls) == 100
