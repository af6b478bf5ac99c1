"""A guest's NVMe driver, without a guest: what QEMU and Linux's driver do with one controller, in this event loop.

Owns one connection to a controller's socket, the memory behind it, an admin queue and one I/O queue. It acts as
Linux's driver does (drivers/nvme/host/pci.c): shadow doorbells where the controller has them, an Asynchronous Event
Request that is always outstanding, and at an error event a reset of the controller, after which what was in flight is
sent again. Its caller sees commands that take long, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from nvmf_vfio.link import TargetError as LinkError
from nvmf_vfio.link import TargetLink, connect
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DmaMap, RegionAccess, SetIrqs
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.protocol.wire import Message
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.registers import BAR0, CC_EN, CQE_SIZE, CSTS_RDY, DOORBELLS, SQE_SIZE, Register
from nvmuser.errors import HostConnectionError, HostError

BLOCK = 4096
FLUSH, WRITE, READ = 0x00, 0x01, 0x02
_CREATE_SQ, _CREATE_CQ, _IDENTIFY, _SET_FEATURES, _EVENT_REQUEST, _DOORBELLS = 0x01, 0x05, 0x06, 0x09, 0x0C, 0x7C
_NUMBER_OF_QUEUES = 0x07
_OACS, _HAS_DOORBELL_BUFFERS = 256, 0x100
"""Identify Controller's optional admin commands, and of them Doorbell Buffer Config (section 5.15.2.1, figure 251)."""
_ENABLE = 0x460001
"""CC: entries of 64 and 16 bytes, enabled (section 3.1.5)."""
_MSIX = 2
"""VFIO_PCI_MSIX_IRQ_INDEX."""
_CONFIG_BYTES, _CAPABILITIES_AT, _MSIX_ID, _MSIX_ENABLE = 256, 0x34, 0x11, 1 << 15
"""Of configuration space (linux/pci_regs.h)."""
_MEMORY = 1 << 20
_ENTRIES = 32
_SUBMISSION, _COMPLETION = (0x1000, 0x3000), (0x2000, 0x4000)
_SHADOW, _EVENT_INDEX, _PAGE = 0x5000, 0x6000, 0x7000
_DATA = 0x10000
_STATUS = 14
"""Where the status is in a completion, its phase bit in the lowest (NVM Express Base Specification 2.0c, 3.3.3.2)."""
_EVENT_ID = _ENTRIES
"""The identifier of the event request, beside those of other commands."""
_READY_INTERVAL = 0.002
"""As Linux's `nvme_wait_ready` looks."""
_CLIENT = {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20, "pgsizes": 4096, "write_multiple": True}


@dataclass
class _Queue:
    """A pair of rings. `commands` are those in flight, in the order of their submission."""

    number: int
    commands: dict[int, tuple[bytes, asyncio.Future[int]]]
    tail: int = 0
    head: int = 0
    phase: int = 1

    def reset(self) -> None:
        self.tail = self.head = 0
        self.phase = 1


class Driver:
    """One controller. `start` it, then `command`; at most `_ENTRIES - 1` commands are in flight.

    :param path: the controller's socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resets = 0
        """How often the controller has asked for one."""
        self._held = Descriptor(os.memfd_create("nvmuser-scale", os.MFD_CLOEXEC))
        os.truncate(self._held.fileno(), _MEMORY)
        self._memory = mmap.mmap(self._held.fileno(), _MEMORY)
        self._events = [Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)) for _ in range(2)]
        self._queues = (_Queue(0, {}), _Queue(1, {}))
        self._shadow = False
        self._loop = asyncio.get_running_loop()
        self._link: TargetLink | None = None
        self._resetting: asyncio.Task[None] | None = None
        self._live = False
        """Commands may be sent: no reset is under way."""
        self._failure: HostError | None = None
        """Why the controller cannot be used any more."""

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, map memory and set interrupts as QEMU does, then set the controller up.

        :raises HostConnectionError: there is no connection, or it ended.
        :raises HostError: an admin command was refused.
        """
        self._link = TargetLink(await connect(self.path), Message.close, self._connection_lost)
        try:
            await self._link.call(Command.VERSION, Version(0, 1, _CLIENT).pack())
            mapping = DmaMap(DmaMap.READ | DmaMap.WRITE, 0, 0, _MEMORY)
            await self._link.call(Command.DMA_MAP, mapping.pack(), [self._held.duplicate()])
            request = SetIrqs(SetIrqs.DATA_EVENTFD | SetIrqs.TRIGGER, _MSIX, 0, len(self._events))
            copies = [event.duplicate() for event in self._events]
            await self._link.call(Command.DEVICE_SET_IRQS, request.pack(), copies)
            await self._enable_msix()
            for queue, event in zip(self._queues, self._events, strict=True):
                self._loop.add_reader(event.fileno(), self._interrupted, queue, event)
            await self._set_up()
        except LinkError as error:
            raise HostConnectionError(f"{self.path}: {error}") from error

    async def _enable_msix(self) -> None:
        """As QEMU passes it on when the guest's system does it."""
        assert self._link is not None
        request = RegionAccess(0, CONFIG, _CONFIG_BYTES)
        data = RegionAccess.unpack(await self._link.call(Command.REGION_READ, request.pack()), with_data=True).data
        place = data[_CAPABILITIES_AT]
        while place and data[place] != _MSIX_ID:
            place = data[place + 1]
        if not place:
            raise HostError(f"{self.path}: no MSI-X capability")
        control = int.from_bytes(data[place + 2 : place + 4], "little") | _MSIX_ENABLE
        write = RegionAccess(place + 2, CONFIG, 2, control.to_bytes(2, "little"))
        await self._link.call(Command.REGION_WRITE, write.pack())

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._resetting:
            self._resetting.cancel()
        if self._link:
            self._link.close()
            self._link = None
        for event in self._events:
            self._loop.remove_reader(event.fileno())
            event.close()
        self._events = []
        self._memory.close()
        self._held.close()

    def _connection_lost(self) -> None:
        self._fail(HostConnectionError(f"{self.path}: the connection ended"))

    def _fail(self, error: HostError) -> None:
        self._failure = self._failure or error
        for queue in self._queues:
            for _, done in queue.commands.values():
                if not done.done():
                    done.set_exception(error)

    # -- registers -----------------------------------------------------------------------------------------------

    async def _read(self, register: int, size: int = 4) -> int:
        assert self._link is not None
        body = await self._link.call(Command.REGION_READ, RegionAccess(register, BAR0, size).pack())
        return int.from_bytes(RegionAccess.unpack(body, with_data=True).data, "little")

    def _write(self, register: int, size: int, value: int) -> None:
        assert self._link is not None
        data = value.to_bytes(size, "little")
        self._link.post(Command.REGION_WRITE, RegionAccess(register, BAR0, size, data).pack())

    # -- the controller ------------------------------------------------------------------------------------------

    async def _set_up(self) -> None:
        """As Linux's `nvme_reset_work`, up to the event request."""
        self._live = False
        await self._read(Register.CSTS)
        await self._read(Register.CAP, 8)
        self._write(Register.CC, 4, _ENABLE & ~CC_EN)
        await self._until_ready(ready=False)
        for queue in self._queues:
            queue.reset()
        for start in (*_COMPLETION, _SHADOW, _EVENT_INDEX):
            self._memory[start : start + 0x1000] = bytes(0x1000)
        self._write(Register.AQA, 4, (_ENTRIES - 1) << 16 | _ENTRIES - 1)
        self._write(Register.ASQ, 8, _SUBMISSION[0])
        self._write(Register.ACQ, 8, _COMPLETION[0])
        self._write(Register.CC, 4, _ENABLE)
        await self._until_ready(ready=True)
        await self._admin(_IDENTIFY, _PAGE, cdw10=1)
        optional = struct.unpack_from("<H", self._memory, _PAGE + _OACS)[0]
        self._shadow = bool(optional & _HAS_DOORBELL_BUFFERS)
        if self._shadow:
            await self._admin(_DOORBELLS, _SHADOW, _EVENT_INDEX)
        await self._admin(_SET_FEATURES, cdw10=_NUMBER_OF_QUEUES)
        size = (_ENTRIES - 1) << 16 | 1
        await self._admin(_CREATE_CQ, _COMPLETION[1], cdw10=size, cdw11=1 << 16 | 3)
        await self._admin(_CREATE_SQ, _SUBMISSION[1], cdw10=size, cdw11=1 << 16 | 1)
        self._request_event()
        self._live = True
        for entry, _ in self._queues[1].commands.values():
            self._put(self._queues[1], entry)

    def _request_event(self) -> None:
        self._put(self._queues[0], struct.pack("<BBH60x", _EVENT_REQUEST, 0, _EVENT_ID))

    async def _until_ready(self, *, ready: bool) -> None:
        while bool(await self._read(Register.CSTS) & CSTS_RDY) is not ready:  # noqa: ASYNC110 (it has to be asked)
            await asyncio.sleep(_READY_INTERVAL)

    async def _reset(self) -> None:
        """The controller has reported an error: begin again."""
        try:
            await self._set_up()
        except (LinkError, HostError) as error:
            self._fail(HostConnectionError(f"{self.path}: the reset failed: {error}"))

    # -- commands ------------------------------------------------------------------------------------------------

    async def _admin(self, opcode: int, data: int = 0, second: int = 0, *, cdw10: int = 0, cdw11: int = 0) -> None:
        status = await self._submit(self._queues[0], opcode, 0, (data, second), (cdw10, cdw11, 0))
        if status:
            raise HostError(f"{self.path}: admin command {opcode:#04x} ended with status {status:#x}")

    async def command(self, opcode: int, slot: int, lba: int = 0) -> int:
        """Carry out an I/O command on one block of namespace 1. Returns its status; 0 is success.

        :param slot: which page of the driver's memory is read or written.
        :raises HostError: the controller cannot be used any more.
        """
        address = 0 if opcode == FLUSH else _DATA + slot * BLOCK
        return await self._submit(self._queues[1], opcode, 1, (address, 0), (lba & 0xFFFFFFFF, lba >> 32, 0))

    def store(self, slot: int, data: bytes) -> None:
        """Fill a page of the driver's memory."""
        start = _DATA + slot * BLOCK
        self._memory[start : start + len(data)] = data

    def load(self, slot: int) -> bytes:
        """What is in it."""
        return self._memory[_DATA + slot * BLOCK : _DATA + (slot + 1) * BLOCK]

    async def _submit(
        self, queue: _Queue, opcode: int, nsid: int, data: tuple[int, int], words: tuple[int, int, int]
    ) -> int:
        if self._failure:
            raise self._failure
        identifier = next(number for number in range(_ENTRIES) if number not in queue.commands)
        entry = struct.pack("<BBHI16xQQ3I12x", opcode, 0, identifier, nsid, *data, *words)
        done: asyncio.Future[int] = self._loop.create_future()
        queue.commands[identifier] = (entry, done)
        if self._live or queue.number == 0:  # else it is sent at the end of the reset
            self._put(queue, entry)
        try:
            return await done
        finally:
            del queue.commands[identifier]

    def _put(self, queue: _Queue, entry: bytes) -> None:
        start = _SUBMISSION[queue.number] + queue.tail * SQE_SIZE
        self._memory[start : start + SQE_SIZE] = entry
        queue.tail = (queue.tail + 1) % _ENTRIES
        self._ring(queue, 2 * queue.number, queue.tail)

    def _ring(self, queue: _Queue, index: int, value: int) -> None:
        """Move a doorbell, as Linux's `nvme_dbbuf_update_and_check_event` does."""
        if self._shadow and queue.number:
            old = struct.unpack_from("<I", self._memory, _SHADOW + 4 * index)[0]
            # In one store: `pack_into` clears the bytes first, and a target that polls sees a doorbell of 0.
            self._memory[_SHADOW + 4 * index : _SHADOW + 4 * index + 4] = value.to_bytes(4, "little")
            event = struct.unpack_from("<I", self._memory, _EVENT_INDEX + 4 * index)[0]
            if (value - event - 1) & 0xFFFF >= (value - old) & 0xFFFF:
                return
        self._write(DOORBELLS + 4 * index, 4, value)

    def _interrupted(self, queue: _Queue, event: Descriptor) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event.fileno())
        before = queue.head
        event_status: int | None = None
        for identifier, status, dword0 in self._completions(queue):
            if queue.number == 0 and identifier == _EVENT_ID:
                event_status = dword0
            elif (found := queue.commands.get(identifier)) and not found[1].done():
                found[1].set_result(status)
        if queue.head != before and self._link:
            self._ring(queue, 2 * queue.number + 1, queue.head)
        if event_status is not None:
            self._event(event_status)

    def _completions(self, queue: _Queue) -> list[tuple[int, int, int]]:
        """Take what has completed off the ring: identifier, status, dword 0 of each."""
        found: list[tuple[int, int, int]] = []
        while True:
            start = _COMPLETION[queue.number] + queue.head * CQE_SIZE
            # The phase before the rest, which may have been written since it was read.
            if self._memory[start + _STATUS] & 1 != queue.phase:
                return found
            dword0, _, _, _, identifier, status = struct.unpack_from("<IIHHHH", self._memory, start)
            found.append((identifier, status >> 1, dword0))
            queue.head += 1
            if queue.head == _ENTRIES:
                queue.head, queue.phase = 0, 1 - queue.phase

    def _event(self, dword0: int) -> None:
        if dword0 & 0x7:  # no error: Linux asks for the next
            self._request_event()
        else:
            self.resets += 1
            self._live = False
            self._resetting = self._loop.create_task(self._reset())
