"""A guest and its target, with an endpoint in between: what passes, what is refused, what is bounded."""

import errno
import os

import pytest
from vfio_fds import descriptors_open, eventfd, memory, signals, until
from vfio_guest import ACQ, ASQ, Refusal
from vfio_target import CAP, FakeTarget
from vfio_world import World, do

from nvmf_vfio.protocol.header import Command, Flag, Header
from nvmf_vfio.protocol.messages import DmaAccess, DmaMap, RegionAccess, RegionInfo, SetIrqs
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.registers import BAR0, CSTS_RDY, DOORBELLS, Register

# -- a target is there -----------------------------------------------------------------------------------------------


async def test_a_guest_sees_the_targets_registers_and_the_longest_time_outs(world: World) -> None:
    world.target()
    await world.report("ready")
    client = world.client()
    await do(client.hello)
    assert await do(client.read, Register.CAP, 8) == CAP | 0xFF << 24 | 1 << 59
    assert await do(client.read, Register.CRTO, 4) & 0xFFFF == 0xFFFF
    assert await do(client.read, Register.VS, 4) == 0x10400
    assert await do(client.read, 0, 4, CONFIG) == 0x00101B36


async def test_every_request_of_a_driver_reaches_the_target(world: World) -> None:
    target, driver = await world.running()
    assert [m.address for m in target.maps] == [0]
    os.eventfd_write(target.eventfds[(2, 0)].fileno(), 1)
    assert signals(driver.interrupt) == 1
    assert int.from_bytes(target.registers[Register.ASQ : Register.ASQ + 8], "little") == ASQ
    assert int.from_bytes(target.registers[Register.ACQ : Register.ACQ + 8], "little") == ACQ


async def test_posted_writes_reach_the_target_in_order_and_get_no_reply(world: World) -> None:
    target, driver = await world.running()
    for value in range(1, 6):
        driver.client.post(DOORBELLS + 8, 4, value)
    await do(driver.csts)
    posted = [r for r in target.asked(Command.REGION_WRITE) if r.offset == DOORBELLS + 8]  # type: ignore[attr-defined]
    assert [int.from_bytes(r.data, "little") for r in posted] == [1, 2, 3, 4, 5]  # type: ignore[attr-defined]


async def test_an_error_of_the_target_is_the_guests_error(world: World) -> None:
    target, driver = await world.running()
    target.refused[Command.DMA_MAP] = errno.ENOSPC
    with memory() as more, pytest.raises(Refusal) as caught:
        await do(driver.client.map, 1 << 30, 1 << 20, more)
    assert caught.value.errno == errno.ENOSPC
    assert await do(driver.csts) == CSTS_RDY


async def test_a_map_refused_by_the_target_is_not_replayed_to_the_next(world: World) -> None:
    target, driver = await world.running()
    target.refused[Command.DMA_MAP] = errno.ENOSPC
    with memory() as more, pytest.raises(Refusal):
        await do(driver.client.map, 1 << 30, 1 << 20, more)
    await world.lose(target)
    assert [m.address for m in (await world.recover()).maps] == [0]


async def test_memory_moved_by_unmap_and_map_without_waiting(world: World) -> None:
    """QEMU sends a whole transaction of its memory listener before it waits for the first reply."""
    target, driver = await world.running()
    client = driver.client

    def move() -> list[int]:
        client.send(Command.DMA_UNMAP, DmaMap(0, 0, 0, 1 << 20).pack()[:8] + bytes(8) + (1 << 20).to_bytes(8, "little"))
        for part in (0, 1):
            client.send(Command.DMA_MAP, DmaMap(3, part << 19, part << 19, 1 << 19).pack(), [driver.memory])
        return [client.receive().header.error for _ in range(3)]

    assert await do(move) == [0, 0, 0]
    assert sorted(m.address for m in target.maps) == [0, 1 << 19]


async def test_the_targets_own_requests_are_answered_by_the_guest(world: World) -> None:
    target, driver = await world.running()
    target.request(Command.DMA_READ, DmaAccess(0x1000, 4).pack())
    message = await do(driver.client.receive)
    assert (message.header.id, message.header.command) == (7, Command.DMA_READ)
    reply = DmaAccess(0x1000, 4, b"abcd").pack()
    driver.client.send_raw(Header(7, Command.DMA_READ, 16 + len(reply), Flag.REPLY).pack() + reply)
    await until(lambda: target.replies_to_it)
    assert target.replies_to_it[0].body == reply


async def test_a_reply_that_no_target_asked_for_stays_here(world: World) -> None:
    target, driver = await world.running()
    with memory() as extra:
        driver.client.send_raw(Header(9, Command.DMA_READ, 16, Flag.REPLY).pack(), [extra])
    assert await do(driver.csts) == CSTS_RDY
    assert target.replies_to_it == []


async def test_a_second_guest_is_turned_away_and_the_first_goes_on(world: World) -> None:
    _, driver = await world.running()
    second = world.client()
    with pytest.raises(Refusal, match=os.strerror(errno.EBUSY)):
        await do(second.hello)
    second.send(Command.DEVICE_GET_INFO)
    assert await do(second.is_closed)
    assert await do(driver.csts) == CSTS_RDY
    assert world.session.controller.version is not None


async def test_the_next_guest_has_a_fresh_connection(world: World) -> None:
    target, driver = await world.running()
    driver.client.close()
    await until(lambda: "a" not in world.endpoint._sessions and target.wire is None)
    other = world.driver()
    await do(other.set_up)
    assert await do(other.csts) == CSTS_RDY
    assert len(world.supervisor.fds) == 4, "connection, record, memory, interrupt"


async def test_a_target_that_maps_its_doorbells_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, driver = await world.running()
    monkeypatch.setattr(FakeTarget, "_answer", lambda *_: RegionInfo(32, 3 | RegionInfo.MMAP, 0, 0, 0x2000, 0).pack())
    driver.client.send(Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, BAR0).pack())
    assert await do(driver.client.is_closed)


async def test_twin_sockets_are_not_offered_to_either_side(world: World) -> None:
    target = world.target()
    await world.report("ready")
    client = world.client()
    offer = Version(0, 1, {"twin_socket": {"supported": True}, "max_msg_fds": 8})
    answer = Version.unpack(await do(client.call, Command.VERSION, offer.pack()))
    (seen,) = target.asked(Command.VERSION)
    assert isinstance(seen, Version)
    assert "twin_socket" not in seen.capabilities
    assert "twin_socket" not in answer.capabilities
    assert answer.capabilities["max_data_xfer_size"] == 0x10000


# -- bounds ----------------------------------------------------------------------------------------------------------


async def test_a_guest_must_begin_with_version(world: World) -> None:
    client = world.client()
    with memory() as held, pytest.raises(Refusal) as caught:
        await do(client.map, 0, 1 << 20, held)
    assert caught.value.errno == errno.EINVAL


async def test_requests_that_only_a_target_answers_are_bounded(world: World) -> None:
    target, driver = await world.running()
    target.held.add(Command.DEVICE_GET_REGION_INFO)

    def flood() -> bool:
        try:
            for index in range(1000):
                driver.client.send(Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, index).pack())
        except OSError:
            return True
        return driver.client.is_closed()

    assert await do(flood)


async def test_cached_replies_are_bounded(world: World) -> None:
    _, driver = await world.running()

    def ask() -> None:
        for argsz in range(500):
            driver.client.call(Command.DEVICE_GET_REGION_INFO, RegionInfo(32 + argsz, 0, BAR0).pack())

    await do(ask)
    assert len(world.session.controller.replies) < 100


async def test_descriptors_of_interrupts_that_are_not_remembered_are_closed(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    before = descriptors_open()
    mask = SetIrqs(SetIrqs.DATA_EVENTFD | SetIrqs.MASK, 2, 0, 1)
    with eventfd() as held:
        for _ in range(20):
            with pytest.raises(Refusal):
                await do(driver.client.call, Command.DEVICE_SET_IRQS, mask.pack(), [held])
    await until(lambda: descriptors_open() == before)


async def test_a_guest_that_does_not_read_is_dropped(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    driver.client.socket.settimeout(1.0)

    def flood() -> None:
        body = RegionAccess(0, BAR0, 0x8000).pack()
        while True:
            driver.client.send(Command.REGION_READ, body)

    with pytest.raises((ConnectionError, TimeoutError)):
        await do(flood)
    await until(lambda: "a" not in world.endpoint._sessions)
