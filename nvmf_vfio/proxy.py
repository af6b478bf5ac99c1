"""The rest of a driver's initialisation of its controller, on a target that did not see the beginning.

A driver that waits for an admin command while it sets its controller up has no event request outstanding, so that
nothing can wake it, and Linux gives a controller up for good when a command of that time is not completed. So the
endpoint acts for it: it has admin queues of its own in the new target, repeats there what the driver has set up so far,
passes on its outstanding and further commands, and puts the completions into the guest's queue. That lasts until the
driver next disables the controller. I/O queues stay between the guest and the target.

The same takes a controller over whose guest has moved, with its I/O queues where they were: the target is given their
positions before it is enabled (our patch 0083).

Owns the memory of those queues, the eventfd on which the target signals them, and the positions in them. The guest's
side of the admin queue is `nvmf_vfio.state.admin`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
from collections import deque
from collections.abc import Callable

from nvmf_vfio.link import TargetError, TargetLink
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DmaMap, DmaUnmap, RegionAccess, SetIrqs
from nvmf_vfio.protocol.wire import Message
from nvmf_vfio.state.admin import AdminQueue, Outstanding
from nvmf_vfio.state.history import Positions
from nvmf_vfio.state.interrupts import INTX
from nvmf_vfio.state.memory import GuestMemory, GuestMemoryError
from nvmf_vfio.state.registers import (
    BAR0,
    BEGINS,
    CQE_SIZE,
    CSTS_RDY,
    DOORBELLS,
    SQE_SIZE,
    Register,
    completion_of,
    completion_status,
)

_ADDRESS = 1 << 52
"""Guest physical address of the queues: above what any CPU can address (x86-64 and AArch64 end at 52 bits)."""
_ENTRIES = 64
_MOST_AT_TARGET = _ENTRIES - 1
"""Commands that the target has, or whose completions the guest has no room for yet. A full ring has one entry empty, so
neither of ours is ever overrun."""
_MOST_WAITING = 4096
"""Commands of the guest that wait for their turn at most: its queue has no more entries (AQA.ASQS, section 3.1.8)."""
_COMPLETIONS_OFFSET = _ENTRIES * SQE_SIZE
_SIZE = 0x2000
_HISTORY_ID = 0xFFF0
_UNMASK_INTX = SetIrqs(SetIrqs.DATA_NONE | SetIrqs.UNMASK, INTX, 0, 1).pack()
_READY_INTERVAL = 0.005
_DEADLINE = 30.0
_RESUME_DEADLINE = 5.0
"""Seconds. I/O waits meanwhile, which Linux gives 30 s, and the driver's reset is still to come then."""


class AdminProxy:
    """The endpoint's own admin queue pair in a target.

    :param interrupt: signals the guest's admin interrupt.
    :param vector_index: the kind of interrupt that the guest uses (linux/vfio.h, VFIO_PCI_*_IRQ_INDEX).
    """

    def __init__(
        self,
        link: TargetLink,
        admin: AdminQueue,
        memory: GuestMemory,
        *,
        interrupt: Callable[[], None],
        vector_index: int,
    ) -> None:
        self._link = link
        self._admin = admin
        self._guest = memory
        self._interrupt = interrupt
        self._vector_index = vector_index
        self._loop = asyncio.get_running_loop()
        self._memory = Descriptor(os.memfd_create("nvmf_vfio-admin", os.MFD_CLOEXEC))
        os.truncate(self._memory.fileno(), _SIZE)
        self._rings = mmap.mmap(self._memory.fileno(), _SIZE)
        self._event = Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self._waiting: deque[bytes] = deque()
        """The guest's commands that the target has not got yet."""
        self._undelivered: deque[bytes] = deque()
        """Completions for which the guest's queue has no room yet."""
        self._at_target = 0
        self._tail = self._head = 0
        self._phase = 1
        self._history: asyncio.Future[int] | None = None
        """Status of the command that is being repeated."""
        self._open = True
        self._loop.add_reader(self._event.fileno(), self._completed)

    async def start(self, cc: int, positions: Positions) -> None:
        """Enable the controller with our queues, repeat what the driver had set up, pass on what it waits for.

        :param cc: the guest's CC.
        :param positions: where the I/O queues that were set up go on; none: where they begin.
        :raises TargetError: the target refuses a request, or does not become ready in 30 s.
        :raises GuestMemoryError: the guest's queues are not in its memory any more.
        """
        call = self._link.call
        request = DmaMap(DmaMap.READ | DmaMap.WRITE, 0, _ADDRESS, _SIZE)
        await call(Command.DMA_MAP, request.pack(), [self._memory.duplicate()])
        await call(Command.DEVICE_SET_IRQS, self._event_request(), [self._event.duplicate()])
        for number, position in positions.items():
            await self._write(DOORBELLS + 4 * number, (BEGINS | position).to_bytes(4, "little"))
        entries = _ENTRIES - 1
        for register, size, value in (
            (Register.AQA, 4, entries << 16 | entries),
            (Register.ASQ, 8, _ADDRESS),
            (Register.ACQ, 8, _ADDRESS + _COMPLETIONS_OFFSET),
            (Register.CC, 4, cc),
        ):
            await self._write(register, value.to_bytes(size, "little"))
        try:
            async with asyncio.timeout(_RESUME_DEADLINE if positions else _DEADLINE):
                await self._wait_ready()
                history = self._admin.set_up(self._guest)
                for entry in history.in_order() if positions else history.entries:
                    await self._repeat(entry)
        except TimeoutError:
            raise TargetError("the controller does not become ready") from None
        self.submit(self._admin.waiting(self._guest))

    async def _write(self, offset: int, data: bytes) -> None:
        await self._link.call(Command.REGION_WRITE, RegionAccess(offset, BAR0, len(data), data).pack())

    async def _wait_ready(self) -> None:
        while True:
            body = await self._link.call(Command.REGION_READ, RegionAccess(Register.CSTS, BAR0, 4).pack())
            if RegionAccess.unpack(body, with_data=True).data[0] & CSTS_RDY:
                return
            await asyncio.sleep(_READY_INTERVAL)

    def _event_request(self) -> bytes:
        return SetIrqs(SetIrqs.DATA_EVENTFD | SetIrqs.TRIGGER, self._vector_index, 0, 1).pack()

    async def _repeat(self, entry: bytes) -> None:
        """Carry out a command that the driver has seen completed by an earlier target.

        :raises TargetError: this target refuses it. The driver relies on its effect, so the target cannot be used.
        """
        self._history = self._loop.create_future()
        self._push(entry[:2] + _HISTORY_ID.to_bytes(2, "little") + entry[4:])
        status = await self._history
        self._history = None
        if status:
            raise TargetError(f"admin command {entry[0]:#04x} is refused with status {status:#x}")

    def submit(self, commands: list[Outstanding]) -> None:
        """Pass the guest's commands on, in their order; those for which there is no room wait.

        Called at each of the guest's admin doorbells: it may have made room for completions.
        """
        room = _MOST_WAITING - len(self._waiting)
        self._waiting.extend(command.entry for command in commands[:room])
        if self._undelivered:
            self._deliver()
            self._interrupt()
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and self._at_target + len(self._undelivered) < _MOST_AT_TARGET:
            self._push(self._waiting.popleft())

    def _push(self, entry: bytes) -> None:
        start = self._tail * SQE_SIZE
        self._rings[start : start + SQE_SIZE] = entry
        self._tail = (self._tail + 1) % _ENTRIES
        self._at_target += 1
        self._link.post(Command.REGION_WRITE, _doorbell(0, self._tail))

    def _completed(self) -> None:
        """Hand the completions to the guest: the target has signalled them."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event.fileno())
        before = self._head
        while True:
            start = _COMPLETIONS_OFFSET + self._head * CQE_SIZE
            entry = self._rings[start : start + CQE_SIZE]
            identifier, tag = completion_of(entry)
            if tag != self._phase:
                break
            self._head += 1
            self._at_target = max(0, self._at_target - 1)
            if self._head == _ENTRIES:
                self._head, self._phase = 0, 1 - self._phase
            if identifier == _HISTORY_ID and self._history is not None and not self._history.done():
                self._history.set_result(completion_status(entry))
            else:
                self._undelivered.append(entry)
        if self._head != before:
            self._link.post(Command.REGION_WRITE, _doorbell(4, self._head))
            if self._vector_index == INTX:
                # There is no further event until then, and the next may be for an I/O queue's completion.
                self._link.request(Command.DEVICE_SET_IRQS, _UNMASK_INTX, [], Message.close)
        delivered = self._deliver()
        self._pass_on()
        # The vector may be an I/O queue's too, so the guest is signalled in any case. But with INTx, an event for
        # which it finds nothing to do stays asserted.
        if self._vector_index != INTX or delivered or self._head == before:
            self._interrupt()

    def _deliver(self) -> int:
        """Put completions into the guest's queue, as far as it has room.

        :returns: how many.
        """
        before = len(self._undelivered)
        while self._undelivered and self._deliver_one(self._undelivered[0]):
            self._undelivered.popleft()
        return before - len(self._undelivered)

    def _deliver_one(self, entry: bytes) -> bool:
        try:
            if not self._admin.has_room(self._guest):
                return False
            slot, phase, _completed = self._admin.free_slot(self._guest)
            identifier, _tag = completion_of(entry)
            status = completion_status(entry) << 1 | phase
            head = self._admin.tail.to_bytes(2, "little")
            self._admin.complete(
                self._guest,
                entry[:8] + head + entry[10:12] + identifier.to_bytes(2, "little") + status.to_bytes(2, "little"),
                slot,
            )
        except GuestMemoryError:
            # The guest has unmapped its queue: it does not wait for this.
            return True
        return True

    def reclaim(self) -> None:
        """Take the admin interrupt back: the guest has set its interrupts, among them the one of this proxy."""

        def done(reply: Message) -> None:
            reply.close()
            if self._open:
                self._completed()

        request = self._event_request()
        self._link.request(Command.DEVICE_SET_IRQS, request, [self._event.duplicate()], done)

    def flush(self) -> None:
        """Hand over what the target has completed: it is about to be left."""
        self._completed()

    def end(self, guest_event: Descriptor | None) -> None:
        """End: the driver disables the controller, and the queues that it sets up next are its own.

        :param guest_event: the guest's admin interrupt, if it has one.
        """
        if guest_event:
            copies = [guest_event.duplicate()]
            self._link.request(Command.DEVICE_SET_IRQS, self._event_request(), copies, Message.close)
        self._link.request(Command.DMA_UNMAP, DmaUnmap(0, _ADDRESS, _SIZE).pack(), [], Message.close)
        self.close()

    def close(self) -> None:
        """Close the memory and the eventfd. Idempotent."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._event.fileno())
            self._event.close()
            self._rings.close()
            self._memory.close()
            if self._history and not self._history.done():
                self._history.set_exception(TargetError("the connection ended"))


def _doorbell(offset: int, value: int) -> bytes:
    return RegionAccess(DOORBELLS + offset, BAR0, 4, value.to_bytes(4, "little")).pack()
