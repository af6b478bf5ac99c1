"""A guest with thousands of maps, as virtio-mem makes them: sent without waiting, kept in few descriptors, replayed."""

from __future__ import annotations

import errno

import pytest
from vfio_fds import descriptors_open, eventfd, memory, until
from vfio_guest import Refusal
from vfio_world import World, do

from nvmf_vfio import link as link_module
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command, Flag
from nvmf_vfio.protocol.messages import DmaMap, SetIrqs
from nvmf_vfio.state import memory as memory_module
from nvmf_vfio.state.interrupts import _MAX_INTERRUPTS, Interrupts
from nvmf_vfio.state.memory import Refused

BLOCK = 0x1000
FIRST = 1 << 30
FEW = 600
AT_ONCE = 200
"""More than may wait for a reply at a time; what comes in addition waits on the socket."""


def flood(world: World, count: int, memory: Descriptor) -> None:
    """Map so many blocks of one file; replies are read when many have been sent."""
    client = world.opened[-1].client
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, count))
        for number in numbers:
            request = DmaMap(3, number * BLOCK, FIRST + number * 2 * BLOCK, BLOCK)
            client.send(Command.DMA_MAP, request.pack(), [memory])
        assert not any(client.receive().header.flags & Flag.ERROR for _ in numbers)


async def test_maps_sent_without_waiting(world: World) -> None:
    """QEMU sends those of a transaction so. One descriptor is kept, here and by the fds."""
    target, driver = await world.running()
    kept = len(world.supervisor.fds)
    before = descriptors_open()
    with memory(FEW * BLOCK) as blocks:
        await do(flood, world, FEW, blocks)
    assert len(target.maps) == FEW + 1
    assert len(world.session.controller.memory.regions) == FEW + 1
    await until(lambda: len(world.supervisor.fds) == kept + 1)
    assert descriptors_open() - before - FEW == 2, "the fake target keeps one for each; here, and the fds's"
    await do(driver.client.unmap, FIRST, BLOCK)
    assert world.session.controller.memory.read(FIRST + 2 * BLOCK, 4) == bytes(4)


async def test_as_many_as_there_may_be_and_a_new_target_is_told_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer here than there may be, because a process that is target, endpoint and guest takes its time."""
    assert link_module._MAX_AWAITED > memory_module.MAX_MAPS + _MAX_INTERRUPTS
    most = 2000
    monkeypatch.setattr(memory_module, "MAX_MAPS", most)
    target, driver = await world.running()
    await world.lose(target)
    with memory(most * BLOCK) as blocks:
        await do(flood, world, most - 1, blocks)
        with pytest.raises(Refusal) as caught:
            await do(driver.client.map, 1 << 40, BLOCK, blocks)
        assert caught.value.errno == errno.ENOSPC
        await do(driver.client.map, FIRST, BLOCK, blocks)
    again = await world.recover()
    assert len(again.maps) == most


def test_interrupts_that_are_replaced_do_not_count_twice() -> None:
    interrupts = Interrupts()

    class Held:
        def __init__(self) -> None:
            self.descriptor = held

        def release(self) -> None:
            pass

    def request(index: int, start: int, count: int) -> SetIrqs:
        return SetIrqs(SetIrqs.DATA_EVENTFD | SetIrqs.TRIGGER, index, start, count)

    with eventfd() as held:
        all_of_them = request(2, 0, _MAX_INTERRUPTS)
        interrupts.check(all_of_them, [held] * _MAX_INTERRUPTS)
        interrupts.remember(all_of_them, [Held() for _ in range(_MAX_INTERRUPTS)])  # type: ignore[misc]
        interrupts.check(all_of_them, [held] * _MAX_INTERRUPTS)
        interrupts.check(request(2, 7, 1), [held])
        with pytest.raises(Refused) as caught:
            interrupts.check(request(0, 0, 1), [held])
    assert caught.value.errno == errno.ENOSPC
