"""The endpoint's own admin queue in a target: never overrun, and what a target refuses is not passed over."""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
from collections.abc import AsyncIterator

import pytest
from vfio_fds import memory, signals, until

from nvmf_vfio.keeper.fd_store import FdStore
from nvmf_vfio.link import TargetError
from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DmaMap, RegionAccess
from nvmf_vfio.proxy import AdminProxy
from nvmf_vfio.state.admin import AdminQueue, Outstanding
from nvmf_vfio.state.memory import GuestMemory
from nvmf_vfio.state.registers import CSTS_RDY, DOORBELLS, AdminQueues, Register

RING = 64
SQ, CQ, SIZE = 0x10000, 0x20000, 0x80000
IDENTIFY = 0x06
CREATE_IO_QUEUE = 0x01


class Link:
    """A target that executes what it is asked to, when it is asked to; it fails where a ring is overrun."""

    def __init__(self) -> None:
        self.rings: mmap.mmap | None = None
        self.event: Descriptor | None = None
        self.fetched = self.completed = self.consumed = 0
        self.tail = 0
        self.seen: list[int] = []
        """Identifiers of the commands, in the order in which they came."""
        self.done = 0
        self.status = 0

    async def call(self, command: Command, body: bytes, descriptors: list[Descriptor] | None = None) -> bytes:
        if command is Command.DMA_MAP:
            assert descriptors
            self.rings = mmap.mmap(descriptors[0].fileno(), 0x2000)
        elif command is Command.DEVICE_SET_IRQS:
            assert descriptors
            self.event = descriptors[0].duplicate()
        close_all(descriptors or [])
        if command is Command.REGION_READ:
            return RegionAccess(Register.CSTS, 0, 4, bytes([CSTS_RDY, 0, 0, 0])).pack()
        return b""

    def post(self, command: Command, body: bytes) -> None:
        request = RegionAccess.unpack(body, with_data=True)
        value = int.from_bytes(request.data, "little")
        if request.offset == DOORBELLS + 4:
            self.consumed += (value - self.consumed) % RING
            return
        assert self.rings is not None
        while self.fetched % RING != value:
            entry = self.rings[self.fetched % RING * 64 :][:64]
            self.seen.append(int.from_bytes(entry[2:4], "little"))
            self.fetched += 1
        assert self.fetched - self.completed < RING, "more commands than the queue has entries"

    def complete(self, count: int) -> None:
        """The next so many commands, in order."""
        assert self.rings is not None
        assert self.event is not None
        for identifier in self.seen[self.completed : self.completed + count]:
            assert self.completed - self.consumed < RING - 1, "more completions than the queue has entries"
            phase = 1 - self.completed // RING % 2
            entry = struct.pack("<IIHHHH", 0, 0, 0, 0, identifier, self.status << 1 | phase)
            start = RING * 64 + self.completed % RING * 16
            self.rings[start : start + 16] = entry
            self.completed += 1
        os.eventfd_write(self.event.fileno(), 1)


class Rig:
    """A guest's admin queue of so many entries, and the proxy that carries it on."""

    def __init__(self, completions: int) -> None:
        self.store = FdStore("test", lambda _name, _descriptor: None, lambda _name: None)
        self.guest, self.held = GuestMemory(), memory(SIZE)
        self.guest.map(DmaMap(3, 0, 0, SIZE), self.store.push(self.held.duplicate()))
        self.admin = AdminQueue()
        self.admin.enable(AdminQueues(SQ, 4096, CQ, completions))
        self.link = Link()
        self.interrupts = 0
        self.proxy = AdminProxy(
            self.link, self.admin, self.guest, interrupt=self._interrupt, vector_index=2  # type: ignore[arg-type]
        )  # fmt: skip

    def close(self) -> None:
        self.proxy.close()
        self.store.close()
        self.held.close()
        if self.link.rings:
            self.link.rings.close()
        if self.link.event:
            self.link.event.close()

    def _interrupt(self) -> None:
        self.interrupts += 1

    def submit(self, *identifiers: int) -> None:
        entries = [struct.pack("<BBH60x", IDENTIFY, 0, identifier) for identifier in identifiers]
        self.proxy.submit([Outstanding(n, entry) for n, entry in zip(identifiers, entries, strict=True)])

    def delivered(self) -> int:
        """Completions that the guest has not consumed yet."""
        slot, _, _ = self.admin.free_slot(self.guest)
        assert self.admin.queues is not None
        return (slot - self.admin.head) % self.admin.queues.completion_size

    def consume(self, count: int) -> None:
        assert self.admin.queues is not None
        self.admin.consumed(self.guest, (self.admin.head + count) % self.admin.queues.completion_size)
        self.proxy.submit([])


@pytest.fixture
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(getattr(request, "param", 4096))
    yield rig
    rig.close()


async def test_more_commands_than_the_ring_holds_wait_for_their_turn(rig: Rig) -> None:
    await rig.proxy.start(0x460001, {})
    rig.submit(*range(1, 301))
    assert rig.link.seen == list(range(1, 64)), "one entry of a full ring is empty"
    while rig.link.completed < 300:
        before = rig.link.completed
        rig.link.complete(10)
        await until(lambda before=before: rig.delivered() >= min(before + 10, 300))  # type: ignore[misc]
    assert rig.link.seen == list(range(1, 301)), "all of them, once, in order"


@pytest.mark.parametrize("rig", [8], indirect=True)
async def test_completions_wait_for_room_in_the_guests_queue(rig: Rig) -> None:
    await rig.proxy.start(0x460001, {})
    rig.submit(*range(1, 21))
    rig.link.complete(20)
    await until(lambda: rig.delivered() == 7)
    interrupts = rig.interrupts
    rig.consume(7)
    assert (rig.delivered(), rig.interrupts) == (7, interrupts + 1)
    rig.consume(7)
    assert rig.delivered() == 6


async def test_a_repeat_that_the_target_refuses_ends_the_introduction(rig: Rig) -> None:
    rig.admin.history.add(struct.pack("<BBH60x", CREATE_IO_QUEUE, 0, 9))
    rig.link.status = 0x10C
    starting = asyncio.ensure_future(rig.proxy.start(0x460001, {}))
    await until(lambda: rig.link.seen)
    rig.link.complete(1)
    with pytest.raises(TargetError, match="admin command 0x01 is refused with status 0x10c"):
        await starting
    assert signals(rig.proxy._event) == 0
