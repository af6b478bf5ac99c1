"""A guest that migrates while its target goes on, and logs what it writes."""

from __future__ import annotations

import pytest
from vfio_fds import until
from vfio_guest import ACQ, Driver
from vfio_migration import Qemu
from vfio_target import FakeTarget
from vfio_world import World, do

from nvmf_vfio.migration.written import Policy
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.migration import DeviceState
from nvmf_vfio.state.registers import CC_EN, CSTS_CFS, CSTS_RDY, OPC_ASYNC_EVENT_REQUEST, Register

ALL = set(range((1 << 20) // 4096))


async def moving(world: World, policy: Policy = Policy.LIVE) -> tuple[FakeTarget, Driver, Qemu]:
    """A guest whose memory is being copied, and whose I/O goes on."""
    world.endpoint._policy = policy
    target = world.target()
    target.logs = True
    await world.report("ready")
    driver = world.driver()
    await do(driver.set_up)
    assert await do(driver.csts) == CSTS_RDY
    await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 5)
    qemu = Qemu(driver.client)
    await do(qemu.start_logging)
    assert target.logging is (policy is Policy.LIVE)
    return target, driver, qemu


async def test_io_goes_on_and_what_it_writes_is_reported_once(world: World) -> None:
    target, driver, qemu = await moving(world)
    assert await do(driver.csts) == CSTS_RDY
    target.written = {3, 200}
    assert await do(qemu.dirty, 0, 128 << 12) == {3}
    assert await do(qemu.dirty) == {200}, "it was collected with the first, and asked for with the second"
    assert await do(qemu.dirty) == set()
    await do(qemu.stop_logging)
    await until(lambda: not target.logging)
    assert await do(driver.csts) == CSTS_RDY


async def test_stopped_with_everything_that_was_written_until_then(world: World) -> None:
    target, _driver, qemu = await moving(world)
    target.written = {7}
    await do(qemu.enter, DeviceState.RUNNING_P2P)
    assert target.registers[Register.CC] & CC_EN
    await do(qemu.enter, DeviceState.STOP)
    assert not target.registers[Register.CC] & CC_EN
    assert await do(qemu.dirty) == {7}
    await do(qemu.enter, DeviceState.STOP_COPY)
    assert world.supervisor.asked("a") == ["yield"]


async def test_given_up_after_it_was_stopped(world: World) -> None:
    _target, driver, qemu = await moving(world)
    await do(qemu.enter, DeviceState.STOP)
    await do(qemu.enter, DeviceState.RUNNING)
    await do(qemu.stop_logging)
    await until(lambda: driver.completion(0)[1] == 5)
    assert world.session.status()["online"]


async def test_a_target_that_is_lost_takes_its_log_with_it(world: World) -> None:
    """Everything was written, and again when what it had in flight has ended; no other target writes unlogged."""
    target, driver, qemu = await moving(world)
    target.kill()
    await world.report("gone")
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
    assert await do(qemu.dirty) == ALL
    assert await do(qemu.dirty) == set()
    await world.report("drained")
    assert await do(qemu.dirty) == ALL
    other = world.target()
    await world.report("ready")
    assert await do(qemu.dirty) == set()
    assert not other.is_versioned
    await do(qemu.stop_logging)
    await until(lambda: driver.completion(0)[1] == 5)


async def test_memory_that_is_taken_back(world: World) -> None:
    target, driver, qemu = await moving(world)
    target.written = {3}
    await do(driver.client.unmap, 0, 1 << 20)
    assert await do(qemu.dirty) == ALL


async def test_a_report_that_is_refused(world: World) -> None:
    """The I/O ends: nobody would know what it writes."""
    target, driver, qemu = await moving(world)
    target.refused[Command.DEVICE_FEATURE] = 22
    assert await do(qemu.dirty) == ALL
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
    assert not target.registers[Register.CC] & CC_EN


async def test_a_target_that_could_log_and_is_not_to(world: World) -> None:
    target, driver, qemu = await moving(world, Policy.FREEZE)
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
    assert not target.registers[Register.CC] & CC_EN
    assert await do(qemu.dirty) == set()


async def test_what_nobody_logs(world: World) -> None:
    """For what has to notice it."""
    target, driver, qemu = await moving(world, Policy.UNLOGGED)
    target.written = {3}
    assert await do(driver.csts) == CSTS_RDY
    assert await do(qemu.dirty) == set()
    await do(qemu.enter, DeviceState.STOP)
    assert await do(qemu.dirty) == set()


@pytest.mark.parametrize("size", [33 << 30])
async def test_a_map_that_is_too_large_to_report(world: World, size: int) -> None:
    target = world.target()
    target.logs = True
    await world.report("ready")
    driver = world.driver()
    await do(driver.set_up)
    await do(driver.client.map, 1 << 40, size, None)
    await do(Qemu(driver.client).start_logging)
    assert not target.logging
    assert ACQ not in await do(Qemu(driver.client).dirty)
    assert not target.registers[Register.CC] & CC_EN
