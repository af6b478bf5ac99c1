"""A guest that migrates from controller a to controller b, with an endpoint in between: the same at two hosts."""

import asyncio
import errno
import os

import pytest
from vfio_fds import signals, until
from vfio_guest import ACQ, ASQ, Driver, Refusal
from vfio_migration import Qemu
from vfio_target import FakeTarget
from vfio_world import World, do

from nvmf_vfio import session as session_module
from nvmf_vfio.keeper import questions
from nvmf_vfio.protocol import migration as wire
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.migration import DeviceState, Feature
from nvmf_vfio.state.registers import CC_EN, CSTS_CFS, CSTS_RDY, OPC_ASYNC_EVENT_REQUEST, Register


async def arriving(world: World) -> tuple[FakeTarget, Driver]:
    """The destination's QEMU, whose CPUs do not run yet."""
    target, driver = world.target("b"), world.driver("b")
    await world.report("ready")
    await do(driver.client.hello)
    await do(driver.client.map, 0, 1 << 20, driver.memory)
    await do(driver.client.interrupts, [driver.interrupt])
    return target, driver


def copy_memory(source: Driver, destination: Driver) -> None:
    os.pwrite(destination.memory.fileno(), os.pread(source.memory.fileno(), 1 << 20, 0), 0)


async def test_what_a_controller_can_do(world: World) -> None:
    _target, driver = await world.running()
    qemu = Qemu(driver.client)
    assert int.from_bytes(await do(qemu.feature, Feature.MIGRATION, wire.GET), "little") == wire.STOP_COPY | wire.P2P
    assert await do(qemu.feature, Feature.DMA_LOGGING_START, wire.PROBE | wire.SET) == b""
    assert 0 < int.from_bytes(await do(qemu.feature, Feature.MIG_DATA_SIZE, wire.GET), "little") < 1 << 20
    assert await do(qemu.state) is DeviceState.RUNNING
    for feature, action, number in (
        (Feature.MIGRATION, wire.SET, errno.EINVAL),
        (Feature.DMA_LOGGING_REPORT, wire.GET, errno.EINVAL),
        (3, wire.GET, errno.ENOTTY),
    ):
        with pytest.raises(Refusal) as caught:
            await do(qemu.feature, feature, action)
        assert caught.value.errno == number


async def test_a_controller_moves_with_its_guest(world: World) -> None:
    here, driver = await world.running()
    there, arrival = await arriving(world)
    await until(lambda: there.is_versioned)
    data = await do(Qemu(driver.client).leave)
    assert not here.registers[Register.CC] & CC_EN, "the I/O ends before the log begins"
    assert world.supervisor.asked("a") == ["yield"]
    copy_memory(driver, arrival)
    await do(Qemu(arrival.client).arrive, data)
    await until(lambda: arrival.completion(0)[1] == 5)
    assert arrival.completion(0) == (0x010300, 5, 1), "its driver is woken by the event that it has requested"
    assert signals(arrival.interrupt) == 1
    assert world.supervisor.asked("b") == ["expect", "take"]
    assert await do(arrival.csts) == CSTS_CFS | CSTS_RDY
    await do(arrival.disable)
    await do(arrival.enable)
    await until(lambda: bool(there.registers[Register.CC] & CC_EN))
    found = [int.from_bytes(there.registers[r : r + 8], "little") for r in (Register.ASQ, Register.ACQ)]
    assert found == [ASQ, ACQ]
    assert await do(arrival.csts) == CSTS_RDY
    assert world.supervisor.asked("a") == ["yield"], "what was given away is not taken back"


async def test_a_driver_that_sets_its_controller_up_moves_too(world: World) -> None:
    world.target()
    await world.report("ready")
    driver = world.driver()
    await do(driver.set_up)  # it has not seen RDY yet
    there, arrival = await arriving(world)
    data = await do(Qemu(driver.client).leave)
    copy_memory(driver, arrival)
    await do(Qemu(arrival.client).arrive, data)
    await until(lambda: bool(there.registers[Register.CC] & CC_EN))
    found = [int.from_bytes(there.registers[r : r + 8], "little") for r in (Register.ASQ, Register.ACQ)]
    assert found == [ASQ, ACQ]


@pytest.mark.parametrize(
    "until_state", [None, DeviceState.RUNNING_P2P, DeviceState.STOP, DeviceState.STOP_COPY], ids=str
)
async def test_given_up_at_each_state(world: World, until_state: DeviceState | None) -> None:
    target, driver = await world.running()
    qemu = Qemu(driver.client)
    await do(qemu.start_logging)
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY, "the guest waits as it does in an outage"
    if until_state:
        for state in (DeviceState.RUNNING_P2P, DeviceState.STOP, DeviceState.STOP_COPY):
            await do(qemu.enter, state)
            if state is until_state:
                break
        await do(qemu.enter, DeviceState.RUNNING)
    await do(qemu.stop_logging)
    await until(lambda: driver.completion(0)[1] == 5)
    await do(driver.disable)
    await do(driver.enable)
    await until(lambda: bool(target.registers[Register.CC] & CC_EN))
    await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 6)
    given_away = until_state is DeviceState.STOP_COPY
    assert world.supervisor.asked("a") == (["yield", "take"] if given_away else [])


async def test_volumes_that_are_not_closed_are_not_somebody_elses(world: World) -> None:
    target, driver = await world.running()
    qemu = Qemu(driver.client)
    await do(qemu.start_logging)
    await do(qemu.enter, DeviceState.STOP)
    world.supervisor.errors["yield"] = "SPDK does not answer"
    with pytest.raises(Refusal):
        await do(qemu.enter, DeviceState.STOP_COPY)
    assert await do(qemu.state) is DeviceState.STOP
    await do(qemu.stop_logging)
    await do(qemu.enter, DeviceState.RUNNING)
    # Whether they were closed after all, nobody knows: they are taken.
    await until(lambda: world.supervisor.asked("a") == ["yield", "take"])
    await until(lambda: target.is_versioned and driver.completion(0)[1] == 5)


async def test_what_cannot_be_taken_yet_is_tried_again(world: World) -> None:
    _here, driver = await world.running()
    there, arrival = await arriving(world)
    data = await do(Qemu(driver.client).leave)
    copy_memory(driver, arrival)
    world.supervisor.errors["take"] = "open elsewhere already"
    await do(Qemu(arrival.client).arrive, data)
    await until(lambda: world.supervisor.asked("b").count("take") > 1)
    assert arrival.completion(0)[1] == 0
    world.supervisor.errors.clear()
    await until(lambda: there.is_versioned and arrival.completion(0)[1] == 5)


async def test_a_controller_at_which_no_guest_is_expected(world: World) -> None:
    _target, arrival = await arriving(world)
    world.supervisor.errors["expect"] = "its volumes are in use here"
    with pytest.raises(Refusal):
        await do(Qemu(arrival.client).enter, DeviceState.RESUMING)
    assert await do(Qemu(arrival.client).state) is DeviceState.RUNNING


async def test_another_controllers_document_is_refused_as_it_comes(world: World) -> None:
    _here, driver = await world.running()
    _there, arrival = await arriving(world)
    data = await do(Qemu(driver.client).leave)
    world.supervisor.identity = world.supervisor.identity | {"namespaces": [{"nsid": 2}]}
    await do(Qemu(arrival.client).enter, DeviceState.RESUMING)
    with pytest.raises(Refusal) as caught:
        await do(Qemu(arrival.client).write_all, data)
    assert caught.value.errno == errno.ENODEV
    await do(arrival.client.call, Command.DEVICE_RESET)
    assert await do(Qemu(arrival.client).state) is DeviceState.RUNNING


async def test_what_is_written_here_is_reported_once(world: World) -> None:
    target, driver = await world.running()
    qemu = Qemu(driver.client)
    await world.lose(target)
    await world.report("drained")
    await do(qemu.start_logging)
    assert await do(qemu.dirty) == set()
    world.session._wake_without_target()
    assert driver.completion(0)[1] == 5
    assert await do(qemu.dirty, 0, 8 << 12) == {ACQ // 4096}
    assert await do(qemu.dirty) == set()


async def test_nothing_is_written_once_the_cpus_stand_still(world: World) -> None:
    _target, driver = await world.running()
    qemu = Qemu(driver.client)
    await do(qemu.start_logging)
    await do(qemu.enter, DeviceState.STOP)
    world.session._wake_without_target()
    assert driver.completion(0)[1] == 0


async def test_io_that_does_not_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_QUIESCE_DEADLINE", 0.2)
    target, driver = await world.running()
    target.held.add(Command.VERSION)
    with pytest.raises(Refusal) as caught:
        await do(Qemu(driver.client).start_logging)
    assert caught.value.errno == errno.ETIMEDOUT
    target.held.clear()
    target.hang_up()
    await until(lambda: driver.completion(0)[1] == 5)


async def test_a_target_that_dies_while_its_io_ends(world: World) -> None:
    target, driver = await world.running()
    target.fatal.add(Command.VERSION)
    started = asyncio.create_task(do(Qemu(driver.client).start_logging))
    await until(lambda: not world.session.status()["online"])
    target.kill()
    await world.report("gone")
    assert not started.done(), "what it had in flight may still land"
    await world.report("drained")
    await started
    await world.report("ready")
    assert not world.session.status()["online"]


async def test_a_supervisor_that_is_gone_or_silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_DEADLINE", 0.1)
    _target, driver = await world.running()
    qemu = Qemu(driver.client)
    await do(qemu.start_logging)
    world.supervisor.silent = True
    with pytest.raises(Refusal):
        await do(qemu.enter, DeviceState.STOP_COPY)
    assert world.supervisor.channel
    world.supervisor.channel.close()
    await until(lambda: world.endpoint._channel is None)
    with pytest.raises(Refusal):
        await do(qemu.enter, DeviceState.STOP_COPY)


async def test_a_guest_goes_on_without_a_supervisor(world: World) -> None:
    """It cannot leave, and nothing was closed."""
    _target, driver = await world.running()
    qemu = Qemu(driver.client)
    await do(qemu.start_logging)
    assert world.supervisor.channel
    world.supervisor.channel.close()
    await until(lambda: world.endpoint._channel is None)
    with pytest.raises(Refusal):
        await do(qemu.enter, DeviceState.STOP_COPY)
    await do(qemu.stop_logging)
    await do(qemu.enter, DeviceState.RUNNING)
    await until(lambda: driver.completion(0)[1] == 5)


async def test_a_plain_stop_of_the_cpus_is_no_migration(world: World) -> None:
    _target, driver = await world.running()
    qemu = Qemu(driver.client)
    for state in (DeviceState.RUNNING_P2P, DeviceState.STOP, DeviceState.RUNNING_P2P, DeviceState.RUNNING):
        await do(qemu.enter, state)
    assert await do(driver.csts) == CSTS_RDY
    assert world.session.status()["online"]
