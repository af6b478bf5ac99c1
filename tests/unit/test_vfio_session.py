"""A guest, an endpoint and targets that come and go, in one process."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from vfio_fakes import (
    ACQ,
    ASQ,
    BAR0,
    CAP,
    CONFIG,
    Driver,
    FakeTarget,
    Refusal,
    descriptors_open,
    eventfd,
    memory,
    signals,
    until,
)
from vfio_world import World, do

from nvmf_vfio import uplink as uplink_module
from nvmf_vfio.keeper import journal as journal_module
from nvmf_vfio.protocol.header import Command, Flag, Header
from nvmf_vfio.protocol.messages import DeviceFeature, DmaAccess, DmaMap, RegionAccess, RegionInfo, SetIrqs
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.state.registers import CSTS_CFS, CSTS_RDY, DOORBELLS, OPC_ASYNC_EVENT_REQUEST, Register

Do = Callable[..., Awaitable[Any]]

ERROR_EVENT = 0x01_03_00
"""Dword 0: log page 1, persistent internal error, type error."""


# -- a target is there ---------------------------------------------------------------------------------------------


async def test_a_guest_sees_the_targets_registers_and_the_longest_time_outs(world: World) -> None:
    world.target()
    await world.tell("ready")
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


async def test_a_map_refused_by_the_target_is_not_told_to_the_next(world: World) -> None:
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
    await world.tell("ready")
    client = world.client()
    offer = Version(0, 1, {"twin_socket": {"supported": True}, "max_msg_fds": 8})
    answer = Version.unpack(await do(client.call, Command.VERSION, offer.pack()))
    (seen,) = target.asked(Command.VERSION)
    assert isinstance(seen, Version)
    assert "twin_socket" not in seen.capabilities
    assert "twin_socket" not in answer.capabilities
    assert answer.capabilities["max_data_xfer_size"] == 0x10000


# -- the target is gone --------------------------------------------------------------------------------------------


async def test_requests_that_a_target_took_with_it_are_answered_at_once(world: World) -> None:
    target, driver = await world.running()
    target.held |= {Command.REGION_READ, Command.DMA_MAP, Command.DEVICE_SET_IRQS}
    client = driver.client
    with memory() as more, eventfd() as interrupt:
        ids = [
            client.send(Command.REGION_READ, RegionAccess(Register.CSTS, BAR0, 4).pack()),
            client.send(Command.DMA_MAP, DmaMap(3, 0, 1 << 30, 1 << 20).pack(), [more]),
            client.send(Command.DEVICE_SET_IRQS, SetIrqs(0x24, 2, 1, 1).pack(), [interrupt]),
        ]
    await until(lambda: target.asked(Command.DEVICE_SET_IRQS)[1:])
    await world.lose(target)
    replies = [await do(client.receive) for _ in ids]
    assert [reply.header.id for reply in replies] == ids
    assert [reply.header.error for reply in replies] == [0, 0, 0]
    data = RegionAccess.unpack(replies[0].body, with_data=True).data
    assert int.from_bytes(data, "little") == CSTS_CFS | CSTS_RDY

    again = await world.recover()
    assert [m.address for m in again.maps] == [0, 1 << 30]
    assert set(again.eventfds) == {(2, 0), (2, 1)}


async def test_while_there_is_no_target_everything_is_answered_and_remembered(world: World) -> None:
    target, driver = await world.running()
    client = driver.client
    await do(client.call, Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, BAR0).pack())
    await world.lose(target)
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
    assert await do(client.read, Register.CAP, 8) == CAP | 0xFF << 24 | 1 << 59
    assert await do(client.read, Register.CRTO, 4) == 0xFFFF
    assert await do(client.read, 0, 4, CONFIG) == 0x00101B36
    info = RegionInfo.unpack(await do(client.call, Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, BAR0).pack()))
    assert info.size == 0x4000
    with memory() as more, eventfd() as interrupt:
        await do(client.map, 1 << 30, 1 << 20, more)
        await do(client.interrupts, [interrupt], 2, 3)
    await do(client.write, 0x4, 2, 0x0406, CONFIG)
    assert await do(client.read, 0x4, 2, CONFIG) == 0x0406
    client.post(DOORBELLS + 8, 4, 1)
    with pytest.raises(Refusal) as caught:
        await do(client.call, Command.DEVICE_FEATURE, DeviceFeature(8, 0).pack())
    assert caught.value.errno == errno.ENOTSUP

    again = await world.recover()
    assert {m.address for m in again.maps} == {0, 1 << 30}
    assert set(again.eventfds) == {(2, 0), (2, 3)}
    writes = [r for r in again.asked(Command.REGION_WRITE) if r.region == CONFIG]  # type: ignore[attr-defined]
    assert [(w.offset, w.data) for w in writes] == [(4, b"\x06\x04")]  # type: ignore[attr-defined]


async def test_overlapping_maps_are_refused_without_a_target_too(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    with memory() as more, pytest.raises(Refusal) as caught:
        await do(driver.client.map, 0x1000, 1 << 20, more)
    assert caught.value.errno == errno.EEXIST


async def test_ready_stays_until_the_old_target_is_drained(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    await do(driver.disable)
    assert await do(driver.csts) == CSTS_RDY, "what the dead process has in flight may still land"
    await world.tell("drained")
    assert await do(driver.csts) == 0


async def test_a_guest_that_enables_without_a_target_waits_for_the_next(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    await do(driver.disable)
    await world.tell("drained")
    await do(driver.enable)
    assert await do(driver.csts) == 0
    again = await world.recover()
    assert await do(driver.csts) == CSTS_RDY
    offsets = [r.offset for r in again.asked(Command.REGION_WRITE) if r.region == BAR0]  # type: ignore[attr-defined]
    assert offsets == [Register.AQA, Register.ASQ, Register.ACQ, Register.CC]
    assert signals(driver.interrupt) == 0


async def test_reset_without_a_target(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    await do(driver.client.call, Command.DEVICE_RESET)
    await world.tell("drained")
    assert await do(driver.csts) == 0
    again = await world.recover()
    assert not [r for r in again.asked(Command.REGION_WRITE) if r.region == BAR0]  # type: ignore[attr-defined]
    await do(driver.enable)
    assert await do(driver.csts) == CSTS_RDY


# -- a target is back ----------------------------------------------------------------------------------------------


async def test_a_new_target_is_told_in_order_and_the_guest_is_woken(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    again = await world.recover()
    assert [command for command, _ in again.requests[:3]] == [
        Command.VERSION,
        Command.DMA_MAP,
        Command.DEVICE_SET_IRQS,
    ]
    assert driver.completion(0) == (ERROR_EVENT, 5, 1)
    assert signals(driver.interrupt) == 1
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY, "for drivers that ignore the event"

    await do(driver.disable)
    assert await do(driver.csts) == 0
    await do(driver.enable)
    assert await do(driver.csts) == CSTS_RDY
    status = world.session.status()
    assert (status["phase"], status["recoveries"]) == ("live", 1)


async def test_the_wake_up_follows_completions_that_the_guest_has_not_seen(world: World) -> None:
    target, driver = await world.running()
    await do(driver.submit, 6, 1)
    await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 6)
    driver.complete(0, 1)
    driver.complete(1, 5)
    await world.lose(target)
    await world.recover()
    assert driver.completion(2) == (ERROR_EVENT, 6, 1), "request 5 has its completion already"


async def test_a_guest_without_an_event_request_finds_the_failure_itself(world: World) -> None:
    target = world.target()
    await world.tell("ready")
    driver = world.driver()
    await do(driver.set_up)
    await do(driver.csts)
    driver.client.post(DOORBELLS + 8, 4, 1)
    await do(driver.csts)
    await world.lose(target)
    await world.recover()
    assert driver.completion(0) == (0, 0, 0)
    assert signals(driver.interrupt) == 0
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY


async def test_a_second_crash_while_the_guest_recovers(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    again = world.target()
    again.held.add(Command.DMA_MAP)
    await world.tell("ready")
    await until(lambda: again.asked(Command.DMA_MAP))
    await world.lose(again)
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
    third = await world.recover()
    assert [m.address for m in third.maps] == [0]
    assert driver.completion(0) == (ERROR_EVENT, 5, 1)


async def test_what_changes_during_the_replay_reaches_the_new_target(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    again = world.target()
    again.held.add(Command.DEVICE_SET_IRQS)
    await world.tell("drained")
    await world.tell("ready")
    await until(lambda: again.asked(Command.DEVICE_SET_IRQS))
    with memory() as more:
        await do(driver.client.map, 1 << 30, 1 << 20, more)
    await do(driver.client.unmap, 0, 1 << 20)
    await until(lambda: [m.address for m in again.maps] == [1 << 30])


async def test_a_target_that_refuses_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_module, "_RETRY_INTERVAL", 0.01)
    target, driver = await world.running()
    await world.lose(target)
    again = world.target()
    again.refused[Command.DMA_MAP] = errno.ENOSPC
    await world.tell("ready")
    await until(lambda: len(again.asked(Command.DMA_MAP)) > 1)
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
    again.refused.clear()
    await until(lambda: world.session.status()["online"])


async def test_a_target_that_hangs_up_is_not_drained_until_it_answers_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink_module, "_RETRY_INTERVAL", 0.01)
    target, driver = await world.running()
    target.held.add(Command.VERSION)
    target.hang_up()
    await until(lambda: len(target.asked(Command.VERSION)) == 2)
    await do(driver.disable)
    assert await do(driver.csts) == CSTS_RDY
    target.held.clear()
    target.hang_up()
    await until(lambda: world.session.status()["online"])
    assert await do(driver.csts) == 0


async def test_late_replies_are_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_REPLY_DEADLINE", 0.05)
    target, driver = await world.running()
    target.held |= {Command.REGION_READ, Command.DEVICE_GET_IRQ_INFO}
    assert await do(driver.csts) == CSTS_RDY, "answered in the target's place, in time"
    driver.client.send(Command.DEVICE_GET_IRQ_INFO, bytes(16))
    assert (await do(driver.client.receive)).header.error == errno.ETIMEDOUT
    assert target.wire is not None
    for identifier in range(64):
        target.wire.send(Header(identifier, Command.REGION_READ, 0, Flag.REPLY), bytes(20))
    target.held.clear()
    assert await do(driver.client.read, Register.VS, 4) == 0x10400


async def test_a_slow_reply_to_one_request_does_not_hasten_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that a request waits for a target does not count against the target."""
    world.target().kill()
    client = world.client()
    hello = asyncio.create_task(do(client.hello))
    await until(lambda: world.endpoint._sessions)
    monkeypatch.setattr(journal_module, "_REPLY_DEADLINE", 0.2)
    await asyncio.sleep(0.3)
    world.target()
    await world.tell("ready")
    assert (await hello).minor == 1


async def test_two_guests_do_not_disturb_each_other(world: World) -> None:
    target, driver = await world.running()
    other_target = world.target("b")
    other = world.driver("b")
    await do(other.set_up)
    target.hang_up()
    await until(lambda: not world.session.status()["online"])
    assert await do(other.csts) == CSTS_RDY
    other_target.kill()
    await world.lose(target)
    assert await do(driver.csts) == CSTS_CFS | CSTS_RDY


# -- a driver that was setting its controller up -------------------------------------------------------------------

CREATE_COMPLETION_QUEUE, IDENTIFY = 0x05, 0x06


async def starting(world: World) -> tuple[FakeTarget, Driver]:
    """A driver that has set a queue up and waits for its next command when the target dies."""
    target = world.target()
    target.works = True
    await world.tell("ready")
    driver = world.driver()
    await do(driver.set_up)
    assert await do(driver.csts) == CSTS_RDY
    await do(driver.submit, CREATE_COMPLETION_QUEUE, 1)
    await until(lambda: driver.completion(0)[1:] == (1, 1))
    await do(driver.consume, 1)
    target.works = False
    await do(driver.submit, IDENTIFY, 2)
    signals(driver.interrupt)
    return target, driver


async def carry_on(world: World) -> FakeTarget:
    target = world.target()
    target.works = True
    await world.tell("drained")
    await world.tell("ready")
    await until(lambda: world.session.status()["online"])
    return target


def executed(target: FakeTarget) -> list[int]:
    return [entry[0] for entry in target.executed]


async def test_a_driver_is_carried_through_its_initialisation(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    assert await do(driver.csts) == CSTS_RDY
    again = await carry_on(world)
    await until(lambda: driver.completion(1)[1:] == (2, 1))
    assert executed(again) == [CREATE_COMPLETION_QUEUE, IDENTIFY]
    assert signals(driver.interrupt) > 0
    assert await do(driver.csts) == CSTS_RDY
    assert await do(driver.client.read, Register.ASQ, 8) == ASQ, "its own, whatever the target has"
    await do(driver.consume, 2)
    for identifier in range(3, 20):
        await do(driver.submit, IDENTIFY, identifier)
        slot, phase = (identifier - 1) % 8, 1 - (identifier - 1) // 8 % 2
        await until(lambda: driver.completion(slot)[1:] == (identifier, phase))  # noqa: B023 (awaited at once)
        await do(driver.consume, (slot + 1) % 8)


async def test_what_is_submitted_while_there_is_no_target_is_carried_on_too(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    await do(driver.submit, IDENTIFY, 3)
    again = await carry_on(world)
    await until(lambda: driver.completion(2)[1:] == (3, 1))
    assert executed(again) == [CREATE_COMPLETION_QUEUE, IDENTIFY, IDENTIFY]


async def test_a_driver_that_begins_anew_has_its_own_queues_again(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    again = await carry_on(world)
    await do(driver.disable)
    await do(driver.enable)
    assert await do(driver.csts) == CSTS_RDY
    assert [m.address for m in again.maps] == [0]
    await do(driver.submit, IDENTIFY, 9)
    assert driver.completion(0)[1:] == (9, 1)
    assert signals(driver.interrupt) > 0


async def test_a_second_crash_while_a_driver_is_carried_on(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    again = await carry_on(world)
    await until(lambda: driver.completion(1)[1:] == (2, 1))
    await do(driver.consume, 2)
    again.works = False
    await do(driver.submit, IDENTIFY, 3)
    await world.lose(again)
    third = await carry_on(world)
    await until(lambda: driver.completion(2)[1:] == (3, 1))
    assert executed(third) == [CREATE_COMPLETION_QUEUE, IDENTIFY]


async def test_interrupts_set_anew_while_a_driver_is_carried_on(world: World) -> None:
    target, driver = await starting(world)
    await world.lose(target)
    await carry_on(world)
    await until(lambda: driver.completion(1)[1:] == (2, 1))
    await do(driver.consume, 2)
    await do(driver.client.interrupts, [driver.interrupt])
    await do(driver.submit, IDENTIFY, 3)
    await until(lambda: driver.completion(2)[1:] == (3, 1))


# -- bounds --------------------------------------------------------------------------------------------------------


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
