"""Guests of several targets at one endpoint: what happens to one target, its own guests alone learn."""

from __future__ import annotations

import pytest
from vfio_fds import until
from vfio_guest import Driver
from vfio_target import FakeTarget
from vfio_world import World, do

from nvmf_vfio.state.registers import CSTS_CFS, CSTS_RDY, OPC_ASYNC_EVENT_REQUEST


async def _guest(world: World, name: str) -> tuple[FakeTarget, Driver]:
    """A guest whose driver works, on a target of its own."""
    target = world.target(name)
    await world.report("ready", name)
    driver = world.driver(name)
    await do(driver.set_up)
    assert await do(driver.csts) == CSTS_RDY
    await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 5)
    return target, driver


def _online(world: World, name: str) -> bool:
    return bool(world.endpoint._sessions[name].status()["online"])


async def test_a_target_that_dies_is_lost_to_its_own_guests_alone(world: World) -> None:
    (target, driver), (_, other) = await _guest(world, "a"), await _guest(world, "b")
    target.kill()
    await world.report("gone", "a")
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
    assert (_online(world, "a"), _online(world, "b")) == (False, True)
    assert await do(other.csts) == CSTS_RDY
    assert world.endpoint._sessions["b"].status()["recoveries"] == 0


async def test_a_controller_moves_to_another_target(world: World) -> None:
    """The socket is the same: who listens at it is another."""
    (target, driver), _ = await _guest(world, "a"), await _guest(world, "b")
    await world.report("gone", "a")
    await until(lambda: target.wire is None)
    target.kill()
    await world.report("drained", "a")
    world.target("a")
    await world.report("ready", "a")
    await until(lambda: _online(world, "a"))
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY, "until its driver resets it"


async def test_a_guest_that_connects_waits_for_its_own_target(world: World) -> None:
    await _guest(world, "b")
    world.target("a")
    world.client("a").post(0, 4, 0)
    await until(lambda: "a" in world.endpoint._sessions)
    assert not _online(world, "a")
    await world.report("ready", "a")
    await until(lambda: _online(world, "a"))


async def test_what_an_older_supervisor_says_is_of_all(world: World) -> None:
    await _guest(world, "a"), await _guest(world, "b")
    await world.report("gone")
    assert not _online(world, "a")
    assert not _online(world, "b")
    await world.report("ready")
    await until(lambda: _online(world, "a") and _online(world, "b"))


async def test_a_controller_that_comes_back_under_its_name_has_no_target_yet(world: World) -> None:
    await world.report("ready", "a", "b")
    world.supervisor.send("serve", controllers=["b"])
    world.supervisor.send("serve", controllers=["a", "b"])
    await world.supervisor.status()
    assert not world.endpoint._is_target_ready("a")
    assert world.endpoint._is_target_ready("b")


@pytest.mark.parametrize("state", ["gone", "drained", "ready"])
async def test_controllers_that_nobody_serves_are_no_error(world: World, state: str) -> None:
    await world.report(state, "a", "nobody")
    assert world.supervisor.heard("hello")[0]["several"] is True
