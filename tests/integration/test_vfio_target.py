"""What the unit tests' fake target does is what SPDK does."""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from vfio_fds import eventfd, memory
from vfio_guest import Client, Driver, Refusal
from vfio_target import VERSION, FakeTarget

from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DeviceInfo, IrqInfo, RegionInfo, SetIrqs
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.registers import BAR0, CSTS_RDY, DOORBELLS, Register
from nvmuser.rpc import Client as Rpc

do = asyncio.to_thread
MIB = 1 << 20
NQN = "nqn.2026-11.org.nvmuser:fake"


async def listen(target: BareTarget, *directories: Path) -> None:
    async with await Rpc.connect(target.rpc_socket) as rpc:
        await rpc.call("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True})
        for number, directory in enumerate(directories):
            nqn = f"{NQN}{number}"
            await rpc.call("nvmf_create_subsystem", {"nqn": nqn, "allow_any_host": True})
            address = {"trtype": "VFIOUSER", "traddr": str(directory), "trsvcid": "0"}
            await rpc.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})


@pytest.fixture(params=["fake", "real"])
async def path(request: pytest.FixtureRequest, tmp_path: Path, target_factory: TargetFactory) -> AsyncIterator[Path]:
    """The socket of a controller."""
    directory = tmp_path / "t"
    directory.mkdir()
    if request.param == "fake":
        target = FakeTarget(directory / "cntrl")
        yield directory / "cntrl"
        target.kill()
        return
    await listen(target_factory.start(), directory)
    yield directory / "cntrl"


@pytest.fixture
async def driver(path: Path) -> AsyncIterator[Driver]:
    driver = Driver(await do(Client, path))
    yield driver
    driver.close()


async def wait_csts(driver: Driver, ready: int) -> None:
    async with asyncio.timeout(10):
        while await do(driver.csts) & CSTS_RDY != ready:  # noqa: ASYNC110 (a register is polled)
            await asyncio.sleep(0.01)


async def test_version(driver: Driver) -> None:
    answer = await do(driver.client.hello)
    assert (answer.major, answer.minor) == (0, 1)
    assert answer.capabilities["max_msg_fds"] >= 8


async def test_version_comes_first_and_once(driver: Driver) -> None:
    await do(driver.client.hello)
    with pytest.raises(Refusal) as caught:
        await do(driver.client.call, Command.VERSION, Version(0, 1, VERSION.capabilities).pack())
    assert caught.value.errno == errno.EINVAL


async def test_regions_and_interrupts(driver: Driver) -> None:
    client = driver.client
    await do(client.hello)
    info = DeviceInfo.unpack(await do(client.call, Command.DEVICE_GET_INFO, DeviceInfo(16).pack()))
    assert (info.regions, info.irqs) == (9, 5)
    bar = RegionInfo.unpack(await do(client.call, Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, BAR0).pack()))
    assert bar.size == 0x4000
    assert not bar.flags & RegionInfo.MMAP, "disable_mappable_bar0"
    config = RegionInfo.unpack(await do(client.call, Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, CONFIG).pack()))
    assert config.size == 4096
    irq = IrqInfo.unpack(await do(client.call, Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 0, 2).pack()))
    assert irq.count >= 9


async def test_registers(driver: Driver) -> None:
    client = driver.client
    await do(client.hello)
    cap = await do(client.read, Register.CAP, 8)
    assert cap >> 24 & 0xFF == 0x1E, "CAP.TO is 15 s"
    assert cap >> 32 & 0xF == 0, "doorbells lie 4 bytes apart"
    assert await do(client.read, Register.VS, 4) >= 0x10300
    assert await do(client.read, Register.CSTS, 4) == 0
    assert await do(client.read, 0, 2, CONFIG) != 0xFFFF
    whole = await do(client.read, 0, 4096, CONFIG)
    assert whole & 0xFFFF == await do(client.read, 0, 2, CONFIG)


async def test_maps(driver: Driver) -> None:
    client = driver.client
    await do(client.hello)
    with memory() as first, memory() as second:
        await do(client.map, 0, MIB, first)
        with pytest.raises(Refusal):
            await do(client.map, 0x1000, MIB, second)
        await do(client.map, MIB, MIB, second)
        await do(client.unmap, 0, MIB)
        await do(client.map, 0, MIB, second)


async def test_enable_disable_reset(driver: Driver) -> None:
    client = driver.client
    await do(driver.set_up)
    await wait_csts(driver, CSTS_RDY)
    assert await do(client.read, Register.CC, 4) == 0x460001
    await do(driver.disable)
    await wait_csts(driver, 0)
    await do(driver.enable)
    await wait_csts(driver, CSTS_RDY)
    await do(client.call, Command.DEVICE_RESET)
    assert await do(client.read, Register.CC, 4) == 0x460001, "SPDK's controllers are not reset by it"
    await do(driver.disable)
    await wait_csts(driver, 0)
    await do(driver.enable)
    await wait_csts(driver, CSTS_RDY)


async def test_posted_writes_have_no_reply(driver: Driver) -> None:
    await do(driver.set_up)
    await wait_csts(driver, CSTS_RDY)
    driver.client.post(DOORBELLS + 4, 4, 0)
    assert await do(driver.csts) == CSTS_RDY


async def test_interrupts_are_set_in_pieces_and_taken_away(driver: Driver) -> None:
    client = driver.client
    await do(client.hello)
    with eventfd() as held:
        for start in (0, 4):
            await do(client.interrupts, [held] * 4, 2, start)
    empty = SetIrqs(SetIrqs.DATA_NONE | SetIrqs.TRIGGER, 2, 0, 0)
    await do(client.call, Command.DEVICE_SET_IRQS, empty.pack())


async def test_a_second_connection_waits_for_the_end_of_the_first(path: Path, driver: Driver) -> None:
    await do(driver.set_up)
    await wait_csts(driver, CSTS_RDY)
    second = await do(Client, path)
    answer = asyncio.create_task(do(second.hello))
    await wait_csts(driver, CSTS_RDY)
    done, _ = await asyncio.wait([answer], timeout=0.2)
    assert not done
    driver.client.close()
    assert (await answer).minor == 1
    assert await do(second.read, Register.CC, 4) == 0
    second.close()


async def test_what_was_posted_is_taken_at_once(tmp_path: Path, target_factory: TargetFactory) -> None:
    """A target that took one message each time that it looks would keep its clients waiting."""
    target = target_factory.start(polled=True)
    path = tmp_path / "t"
    path.mkdir()
    await listen(target, path)
    driver = Driver(await do(Client, path / "cntrl"))
    await do(driver.set_up)
    await wait_csts(driver, CSTS_RDY)
    before = await target.messages_taken()
    os.kill(target.process.pid, signal.SIGSTOP)
    for _ in range(20):
        driver.client.post(DOORBELLS + 4, 4, 0)
    os.kill(target.process.pid, signal.SIGCONT)
    assert await do(driver.csts) == CSTS_RDY
    assert 1 <= await target.messages_taken() - before <= 2
    driver.close()
    target.kill()


async def test_many_controllers_are_looked_at_at_once(tmp_path: Path, target_factory: TargetFactory) -> None:
    """Not by a poller each, with a system call each, also where nothing comes."""
    target = target_factory.start(polled=True)
    paths = [tmp_path / str(number) for number in range(6)]
    for path in paths:
        path.mkdir()
    await listen(target, *paths)

    async def pollers() -> list[str]:
        return sorted(str(one["name"]) for one in await target.pollers() if "vfio_user" in str(one["name"]))

    for _ in range(2):  # who leaves makes room
        drivers = []
        for path in paths[:4]:
            drivers.append(Driver(await do(Client, path / "cntrl")))
            await do(drivers[-1].set_up)
            await wait_csts(drivers[-1], CSTS_RDY)
        assert await pollers() == ["vfio_user_poll_connections", "vfio_user_poll_listening"]
        for driver in drivers:
            driver.close()
    target.kill()
