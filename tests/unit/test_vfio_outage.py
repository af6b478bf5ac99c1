"""A guest whose target goes: what is answered without one, and how it is introduced to the next."""

import asyncio
import errno

import pytest
from vfio_fds import eventfd, memory, signals, until
from vfio_guest import Refusal
from vfio_target import CAP
from vfio_world import World, do

from nvmf_vfio import uplink as uplink_module
from nvmf_vfio.keeper import journal as journal_module
from nvmf_vfio.protocol.header import Command, Flag, Header
from nvmf_vfio.protocol.messages import DeviceFeature, DmaMap, RegionAccess, RegionInfo, RegionWriteMulti, SetIrqs
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.interrupts import INTX
from nvmf_vfio.state.registers import BAR0, CSTS_CFS, CSTS_RDY, DOORBELLS, OPC_ASYNC_EVENT_REQUEST, Register

ERROR_EVENT = 0x01_03_00
"""Dword 0: log page 1, persistent internal error, type error."""


# -- the target is gone -----------------------------------------------------------------------------------------------


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
    assert caught.value.errno == errno.ENOTTY

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
    await world.report("drained")
    assert await do(driver.csts) == 0


async def test_a_guest_that_enables_without_a_target_waits_for_the_next(world: World) -> None:
    target, driver = await world.running()
    await world.lose(target)
    await do(driver.disable)
    await world.report("drained")
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
    await world.report("drained")
    assert await do(driver.csts) == 0
    again = await world.recover()
    assert not [r for r in again.asked(Command.REGION_WRITE) if r.region == BAR0]  # type: ignore[attr-defined]
    await do(driver.enable)
    assert await do(driver.csts) == CSTS_RDY


# -- a target is back -----------------------------------------------------------------------------------------------


async def test_a_new_target_gets_the_state_in_order_and_the_guest_is_woken(world: World) -> None:
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


async def test_a_driver_that_resets_its_controller_in_one_message(world: World) -> None:
    """QEMU collects posted writes: CC.EN may be cleared and set again before a target sees either."""
    target, driver = await world.running()
    await world.lose(target)
    again = await world.recover()
    writes = tuple(RegionAccess(Register.CC, BAR0, 4, data) for data in (b"\0\0\x46\0", b"\1\0\x46\0"))
    driver.client.send(Command.REGION_WRITE_MULTI, RegionWriteMulti(writes).pack(), flags=Flag.NO_REPLY)
    assert await do(driver.csts) == CSTS_RDY
    assert world.session.status()["phase"] == "live"
    offsets = [r.offset for r in again.asked(Command.REGION_WRITE) if r.region == BAR0]  # type: ignore[attr-defined]
    assert offsets == [Register.AQA, Register.ASQ, Register.ACQ, Register.CC]


async def test_the_wake_up_follows_completions_that_the_guest_has_not_seen(world: World) -> None:
    target, driver = await world.running()
    await do(driver.submit, 6, 1)
    await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 6)
    driver.complete(0, 1)
    driver.complete(1, 5)
    await world.lose(target)
    await world.recover()
    assert driver.completion(2) == (ERROR_EVENT, 6, 1), "request 5 has its completion already"


async def test_a_guest_on_a_line_is_woken_without_a_target(world: World) -> None:
    """What is asserted when the target dies stays so until the guest accesses its controller."""
    target = world.target()
    await world.report("ready")
    driver = world.driver()
    await do(driver.client.hello)
    await do(driver.client.map, 0, 1 << 20, driver.memory)
    await do(driver.client.interrupts, [driver.interrupt], INTX)
    await do(driver.enable)
    await do(driver.csts)
    await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 5)
    await world.lose(target)
    assert driver.completion(0) == (0, 0, 0), "what the target has in flight may still land"
    await world.report("drained")
    await until(lambda: driver.completion(0) == (ERROR_EVENT, 5, 1))
    assert signals(driver.interrupt) == 1


async def test_a_guest_without_an_event_request_finds_the_failure_itself(world: World) -> None:
    target = world.target()
    await world.report("ready")
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
    await world.report("ready")
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
    await world.report("drained")
    await world.report("ready")
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
    await world.report("ready")
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
    await world.report("ready")
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
