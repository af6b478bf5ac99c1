"""A controller whose queues go on where they were: its driver notices nothing."""

from __future__ import annotations

import pytest
from vfio_fds import signals, until
from vfio_guest import Driver
from vfio_migration import Qemu
from vfio_target import FakeTarget
from vfio_world import World, do

from nvmf_vfio.migration.written import Policy
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import RegionAccess
from nvmf_vfio.protocol.migration import DeviceState
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.registers import (
    BAR0,
    BEGINS,
    CC_EN,
    CSTS_RDY,
    OPC_ASYNC_EVENT_REQUEST,
    OPC_DOORBELL_BUFFER_CONFIG,
    Register,
)

CREATE_SQ, CREATE_CQ, SET_FEATURES = 0x01, 0x05, 0x09
NUMBER_OF_QUEUES = 7
LEFT = {2: BEGINS | 3, 3: BEGINS | 1 << 16 | 5}
BEGUN = {number: value & ~BEGINS for number, value in LEFT.items()}
PROXY = 1 << 52


async def working(world: World, *, vector: int = 1) -> tuple[FakeTarget, Driver]:
    """A guest that has an I/O queue pair."""
    target = world.target()
    target.logs = target.works = True
    target.left = dict(LEFT)
    await world.report("ready")
    driver = world.driver()
    await do(driver.set_up)
    assert await do(driver.csts) == CSTS_RDY
    await do(driver.submit, SET_FEATURES, 1, cdw10=NUMBER_OF_QUEUES)
    await do(driver.submit, CREATE_CQ, 2, prp1=0x8000, cdw10=63 << 16 | 1, cdw11=vector << 16 | 3)
    await do(driver.submit, CREATE_SQ, 3, prp1=0x9000, cdw10=63 << 16 | 1, cdw11=1 << 16 | 1)
    await do(driver.submit, OPC_DOORBELL_BUFFER_CONFIG, 4, prp1=0xA000)
    await do(driver.consume, 4)
    await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 5)
    return target, driver


async def moving(world: World, *, vector: int = 1, policy: Policy = Policy.LIVE) -> tuple[FakeTarget, Driver, Qemu]:
    """And whose CPUs stand still."""
    world.endpoint._policy = policy
    target, driver = await working(world, vector=vector)
    qemu = Qemu(driver.client)
    await do(qemu.start_logging)
    assert target.logging is (policy is Policy.LIVE)
    target.executed.clear()
    for state in (DeviceState.RUNNING_P2P, DeviceState.STOP):
        await do(qemu.enter, state)
    signals(driver.interrupt)
    return target, driver, qemu


async def back(qemu: Qemu) -> None:
    """The migration is given up."""
    await do(qemu.enter, DeviceState.RUNNING)
    await do(qemu.stop_logging)


async def test_it_goes_on(world: World) -> None:
    target, driver, qemu = await moving(world)
    assert await do(driver.csts) == CSTS_RDY
    await back(qemu)
    await until(lambda: world.session.status()["online"])
    assert target.begun == BEGUN
    assert [entry[0] for entry in target.executed] == [
        SET_FEATURES,
        OPC_DOORBELL_BUFFER_CONFIG,
        CREATE_CQ,
        CREATE_SQ,
        OPC_ASYNC_EVENT_REQUEST,
    ]
    assert driver.completion(4) == (0, 0, 0), "the driver was not woken"
    assert signals(driver.interrupt), "what was signalled to a guest that stood still may be lost"
    assert await do(driver.csts) == CSTS_RDY
    status = world.session.status()
    assert (status["phase"], status["recoveries"], sum(status["stalls"]["counts"])) == ("live", 1, 1)
    await world.report("ready")
    assert target.requests[-1] == (Command.REGION_READ, RegionAccess(Register.CSTS, BAR0, 4)), "a doorbell may be lost"
    config = [write for write in target.asked(Command.REGION_WRITE) if isinstance(write, RegionAccess)]
    assert (0x42, b"\0\x80") in [(write.offset, write.data) for write in config if write.region == CONFIG]


async def test_it_moves_again(world: World) -> None:
    """The endpoint acts for its driver then, and the target logs all the same."""
    target, driver, qemu = await moving(world)
    await back(qemu)
    await until(lambda: world.session.status()["online"])
    target.begun.clear()
    await do(qemu.start_logging)
    assert target.logging
    target.written = {7}
    await do(qemu.enter, DeviceState.STOP)
    assert 7 in await do(qemu.dirty)
    await back(qemu)
    await until(lambda: world.session.status()["online"])
    assert target.begun == BEGUN
    target.complete(5)
    await until(lambda: driver.completion(4)[1] == 5)


async def woken(world: World, driver: Driver, qemu: Qemu) -> None:
    """The driver resets its controller instead."""
    await back(qemu)
    await until(lambda: driver.completion(4)[1] == 5)
    assert world.session.status()["phase"] == "failed"


async def test_a_position_that_is_not_known(world: World) -> None:
    target, driver, qemu = await moving(world)
    target.left = {2: BEGINS}
    await back(qemu)
    await until(lambda: world.session.status()["online"])
    await do(qemu.start_logging)
    for state in (DeviceState.RUNNING_P2P, DeviceState.STOP):
        await do(qemu.enter, state)
    target.begun.clear()
    await woken(world, driver, qemu)
    assert not target.begun


async def test_a_target_that_knows_of_no_positions(world: World) -> None:
    target, driver, qemu = await moving(world)
    target.left = None
    await woken(world, driver, qemu)
    assert not target.begun


async def test_queues_in_memory_that_will_be_wrong(world: World) -> None:
    target, driver, qemu = await moving(world, policy=Policy.UNLOGGED)
    await woken(world, driver, qemu)
    assert not target.begun


async def test_a_queue_with_the_interrupt_of_the_admin_queue(world: World) -> None:
    target, driver, qemu = await moving(world, vector=0)
    await woken(world, driver, qemu)
    assert not target.begun


async def test_a_target_that_refuses_a_queue(world: World) -> None:
    target, driver, qemu = await moving(world)
    target.failing = {CREATE_SQ}
    await woken(world, driver, qemu)
    assert target.begun


async def test_a_target_that_is_lost_while_it_takes_the_queues(world: World) -> None:
    """It may have moved them: nobody knows where they are any more."""
    target, driver, qemu = await moving(world)
    target.works = False
    await back(qemu)
    await until(lambda: target.begun == BEGUN and PROXY in [known.address for known in target.maps])
    await world.lose(target)
    assert world.session.status()["phase"] == "failed"
    await world.recover()
    await until(lambda: driver.completion(4)[1] == 5)


async def test_a_driver_that_resets_its_controller_meanwhile(world: World) -> None:
    target, driver, qemu = await moving(world)
    await do(driver.disable)
    assert world.session.status()["phase"] == "idle"
    await back(qemu)
    await until(lambda: world.session.status()["online"])
    assert not target.begun


async def leave(world: World) -> None:
    """What a supervisor does whose target lets go of a controller."""
    count = len(world.supervisor.heard("left"))
    world.supervisor.send("leave", controllers=["a", "b"])
    await until(lambda: len(world.supervisor.heard("left")) > count)


async def test_to_another_target_of_this_host(world: World) -> None:
    target, driver = await working(world)
    await leave(world)
    assert not target.registers[Register.CC] & CC_EN
    assert await do(driver.csts) == CSTS_RDY
    await world.report("gone")
    target.kill()
    other = world.target()
    other.works, other.left = True, {}
    await world.report("drained")
    await world.report("ready")
    await until(lambda: world.session.status()["online"])
    assert other.begun == BEGUN
    assert driver.completion(4) == (0, 0, 0), "the driver was not woken"
    other.complete(5)
    await until(lambda: driver.completion(4)[1] == 5)


async def test_a_target_that_does_not_let_go_after_all(world: World) -> None:
    target, driver = await working(world)
    await leave(world)
    await world.report("gone")
    await world.report("drained")
    await world.report("ready")
    await until(lambda: world.session.status()["online"])
    assert target.begun == BEGUN
    assert driver.completion(4) == (0, 0, 0)


@pytest.mark.parametrize("vector", [0, 1])
async def test_a_target_that_is_left_as_it_is(world: World, vector: int) -> None:
    """CC.EN=0 under a running driver is for targets alone that are known to take no command then."""
    target, _driver = await working(world, vector=vector)
    target.left = {} if vector == 0 else None
    await leave(world)
    assert target.registers[Register.CC] & CC_EN
    assert world.session.status()["online"]
