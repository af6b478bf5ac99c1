"""A vfio-user target for tests, which behaves as SPDK's NVMe controllers do.

Its behaviour is checked against the real one by tests/integration/test_vfio_target.py.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from vfio_fds import PATIENCE

from nvmf_vfio.protocol import migration
from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmf_vfio.protocol.header import MAX_TARGET_MESSAGE, Command, Flag, Header, ProtocolError
from nvmf_vfio.protocol.messages import (
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    IrqInfo,
    RegionAccess,
    RegionInfo,
    RegionWriteMulti,
    SetIrqs,
    decode_request,
)
from nvmf_vfio.protocol.migration import Feature, LoggingReport
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.protocol.wire import Closed, Message, Wire
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.registers import BAR0, BEGINS, CC_EN, CSTS_RDY, DOORBELLS, OPC_ASYNC_EVENT_REQUEST, Register

CAP = 0x0000_0020_1E01_00FF
"""CAP.TO is 1Eh as SPDK's is: 15 s."""


CONFIG_SPACE = (
    bytes.fromhex("361b100000001000").ljust(0x34, b"\0") + b"\x40".ljust(0xC, b"\0") + b"\x11".ljust(4032, b"\0")
)
"""One capability: MSI-X."""


VERSION = Version(0, 1, {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20})


class FakeTarget:
    """A vfio-user server with one NVMe controller; one client at a time, the next waits in the backlog.

    :ivar requests: what it was asked, in order.
    :ivar held: commands that it does not answer.
    :ivar refused: commands that it answers with an error.
    :ivar fatal: commands at which it hangs up.
    :ivar works: whether it executes admin commands.
    :ivar executed: the admin commands that it has fetched.
    :ivar failing: opcodes of those that it completes with an error.
    :ivar logs: whether it can log the pages that it writes; `logging`, whether it does.
    :ivar written: numbers of those pages.
    :ivar left: where its queues were when its controller was disabled, by doorbell; None: it does not know of that.
    :ivar begun: where queues that are created next begin.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[tuple[Command, object]] = []
        self.held: set[Command] = set()
        self.refused: dict[Command, int] = {}
        self.fatal: set[Command] = set()
        self.works = False
        self.executed: list[bytes] = []
        self.failing: set[int] = set()
        self.logs = self.logging = False
        self.written: set[int] = set()
        self.left: dict[int, int] | None = None
        self.begun: dict[int, int] = {}
        self._files: list[tuple[DmaMap, Descriptor]] = []
        self._fetched = self._completed = 0
        self.maps: list[DmaMap] = []
        self.eventfds: dict[tuple[int, int], Descriptor] = {}
        self.registers = bytearray(0x1000)
        self.replies_to_it: list[Message] = []
        self.wire: Wire | None = None
        self.is_versioned = False
        self._loop = asyncio.get_running_loop()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener.bind(os.fspath(path))
        self._listener.listen(1)
        self._loop.add_reader(self._listener, self._accept)

    def asked(self, command: Command) -> list[object]:
        return [request for known, request in self.requests if known is command]

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        self._loop.remove_reader(self._listener)
        self._power_on()
        self.wire = Wire(sock, limit=MAX_TARGET_MESSAGE)
        self._loop.add_reader(sock, self._readable)

    def _power_on(self) -> None:
        self.maps.clear()
        self.is_versioned = False
        self._forget()
        self._reset()

    def _reset(self) -> None:
        self.registers[:] = bytes(len(self.registers))
        self.registers[Register.CAP : Register.CAP + 8] = CAP.to_bytes(8, "little")
        self.registers[Register.VS : Register.VS + 4] = (0x10400).to_bytes(4, "little")

    def _readable(self) -> None:
        try:
            while self.wire and (message := self.wire.receive()):
                self._serve(message)
        except (Closed, ProtocolError):
            self.hang_up()

    def hang_up(self) -> None:
        """The connection ends; the target lives."""
        if self.wire:
            self._loop.remove_reader(self.wire.socket)
            self.wire.close()
            self.wire = None
            self._forget()
            if self._listener.fileno() >= 0:
                self._loop.add_reader(self._listener, self._accept)

    def _forget(self) -> None:
        for held in [*self.eventfds.values(), *(held for _, held in self._files)]:
            held.close()
        self.eventfds.clear()
        self._files.clear()

    def kill(self) -> None:
        """What SIGKILL does. Idempotent."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        self.hang_up()

    def _serve(self, message: Message) -> None:
        if message.header.is_reply:
            self.replies_to_it.append(message)
            return
        try:
            command, request = decode_request(message.header.command, message.body)
            self.requests.append((command, request))
            if command in self.fatal:
                self.hang_up()
                return
            if command in self.refused:
                raise OSError(self.refused[command], "refused")
            if not self.is_versioned and command is not Command.VERSION:
                raise OSError(errno.EINVAL, "VERSION comes first")
            body = self._answer(command, request, message.descriptors)
        except (ProtocolError, OSError) as error:
            number = error.errno if isinstance(error, OSError) else errno.EINVAL
            self._reply(message.header, b"", number or errno.EINVAL)
        else:
            if command not in self.held:
                self._reply(message.header, body)
        finally:
            close_all(message.descriptors)

    def _reply(self, header: Header, body: bytes, error: int = 0) -> None:
        if header.wants_reply and self.wire:
            flags = Flag.REPLY | (Flag.ERROR if error else 0)
            with contextlib.suppress(Closed):
                self.wire.send(Header(header.id, header.command, 0, flags, error), body)

    def _answer(self, command: Command, request: object, descriptors: list[Descriptor]) -> bytes:
        match request:
            case Version():
                if self.is_versioned:
                    raise OSError(errno.EINVAL, "once is enough")
                self.is_versioned = True
                return VERSION.pack()
            case DmaMap():
                at = bisect.bisect_left(self.maps, request.address, key=lambda known: known.address)
                beside = self.maps[max(0, at - 1) : at + 1]
                if any(m.address < request.end and request.address < m.end for m in beside):
                    raise OSError(errno.EEXIST, "overlap")
                self.maps.insert(at, request)
                self._files += [(request, held.duplicate()) for held in descriptors]
            case DmaUnmap():
                self.maps = [m for m in self.maps if m.address != request.address]
                for gone in [pair for pair in self._files if pair[0].address == request.address]:
                    gone[1].close()
                    self._files.remove(gone)
                return request.pack()
            case DeviceInfo():
                return DeviceInfo(16, 3, 9, 5).pack()
            case RegionInfo():
                size = {BAR0: 0x4000, CONFIG: 4096}.get(request.index, 0)
                return RegionInfo(32, 3, request.index, 0, size, 0).pack()
            case IrqInfo():
                return IrqInfo(16, 1, request.index, 9 if request.index == 2 else 1).pack()
            case SetIrqs():
                if descriptors and not request.flags & SetIrqs.TRIGGER:
                    raise OSError(errno.EINVAL, "an eventfd does not unmask")
                for i, held in enumerate(descriptors):
                    if old := self.eventfds.pop((request.index, request.start + i), None):
                        old.close()
                    self.eventfds[(request.index, request.start + i)] = held.duplicate()
            case RegionAccess() if command is Command.REGION_READ:
                return RegionAccess(request.offset, request.region, request.count, self._read(request)).pack()
            case RegionAccess():
                self._write(request)
                return RegionAccess(request.offset, request.region, request.count).pack()
            case RegionWriteMulti():
                for write in request.writes:
                    self._write(write)
            case _ if command is Command.DEVICE_RESET:
                # SPDK 26.01 leaves the controller as it is ("much more needed here").
                pass
            case DeviceFeature() if self.logs:
                return self._feature(request)
            case _:
                raise OSError(errno.ENOTSUP, "not supported")
        return b""

    def _feature(self, request: DeviceFeature) -> bytes:
        """The log as libvfio-user has it with our patch 0080: a report is of one whole map."""
        if request.flags == Feature.DMA_LOGGING_REPORT | migration.GET and self.logging:
            asked = LoggingReport.unpack(request.data, most=1 << 20)
            if (asked.address, asked.length) not in [(known.address, known.size) for known in self.maps]:
                raise OSError(errno.ENOTSUP, "no whole map")
            pages = range(asked.address >> 12, asked.address + asked.length >> 12)
            bits = sum(1 << page - pages.start for page in self.written & set(pages))
            self.written -= set(pages)
            bitmap = bits.to_bytes(asked.bitmap_size, "little")
            data = LoggingReport(asked.address, asked.length, bitmap).pack()
            return DeviceFeature(request.argsz, request.flags, data).pack()
        if request.flags not in (Feature.DMA_LOGGING_START | migration.SET, Feature.DMA_LOGGING_STOP | migration.SET):
            raise OSError(errno.EINVAL, "no such feature")
        self.logging = request.flags == Feature.DMA_LOGGING_START | migration.SET
        return request.pack()

    def _read(self, request: RegionAccess) -> bytes:
        source = {BAR0: bytes(self.registers), CONFIG: CONFIG_SPACE}.get(request.region)
        if source is None or request.offset + request.count > max(len(source), 0x4000):
            raise OSError(errno.EINVAL, "no such place")
        if request.region == BAR0 and request.offset >= DOORBELLS:
            if self.left is None:
                raise OSError(errno.EPERM, "a doorbell")
            return self.left.get((request.offset - DOORBELLS) // 4, 0).to_bytes(4, "little")
        return source[request.offset : request.offset + request.count].ljust(request.count, b"\0")

    def _write(self, request: RegionAccess) -> None:
        value = int.from_bytes(request.data, "little")
        if request.region == BAR0 and request.offset == DOORBELLS and self.works:
            self._execute(value)
        if request.region == BAR0 and request.offset > DOORBELLS and value & BEGINS:
            assert not self.registers[Register.CC] & CC_EN
            self.begun[(request.offset - DOORBELLS) // 4] = value & ~BEGINS
        if request.region != BAR0 or request.offset >= DOORBELLS:
            return
        if request.offset == Register.CC and not self.registers[Register.CC] & CC_EN:
            self._fetched = self._completed = 0
        self.registers[request.offset : request.offset + request.count] = request.data
        enabled = self.registers[Register.CC] & CC_EN
        self.registers[Register.CSTS] = CSTS_RDY if enabled else 0

    def _register(self, register: Register, size: int = 8) -> int:
        return int.from_bytes(self.registers[register : register + size], "little")

    def _place(self, address: int) -> tuple[int, int]:
        """A descriptor's number and an offset."""
        for request, held in self._files:
            if request.address <= address < request.end:
                return held.fileno(), request.offset + address - request.address
        raise AssertionError(f"{address:#x} is not mapped")

    def _execute(self, tail: int) -> None:
        size = (self._register(Register.AQA, 4) & 0xFFF) + 1
        while self._fetched != tail:
            number, offset = self._place(self._register(Register.ASQ) + 64 * self._fetched)
            entry = os.pread(number, 64, offset)
            self.executed.append(entry)
            self._fetched = (self._fetched + 1) % size
            if entry[0] != OPC_ASYNC_EVENT_REQUEST:
                self.complete(int.from_bytes(entry[2:4], "little"), status=1 if entry[0] in self.failing else 0)

    def complete(self, identifier: int, *, status: int = 0) -> None:
        """Put a completion into the admin queue, and signal it."""
        size = (self._register(Register.AQA, 4) >> 16 & 0xFFF) + 1
        phase = 1 - self._completed // size % 2
        number, offset = self._place(self._register(Register.ACQ) + 16 * (self._completed % size))
        os.pwrite(number, struct.pack("<IIHHHH", 0, 0, self._fetched, 0, identifier, status << 1 | phase), offset)
        self._completed += 1
        if event := self.eventfds.get((2, 0)):
            os.eventfd_write(event.fileno(), 1)

    def request(self, command: Command, body: bytes, identifier: int = 7) -> None:
        """A request of the target's own."""
        assert self.wire is not None
        self.wire.send(Header(identifier, command, 0), body)


@contextlib.contextmanager
def targets_in_thread(paths: list[Path], fatal: dict[Path, set[Command]] | None = None) -> Iterator[None]:
    """Fake targets that serve while a test blocks.

    :param fatal: commands at which some of them hang up.
    """
    started = threading.Event()
    control: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        targets = [FakeTarget(path) for path in paths]
        for target in targets:
            target.fatal |= (fatal or {}).get(target.path, set())
        stop = asyncio.Event()
        control.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        for target in targets:
            target.kill()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(PATIENCE)
        yield
    finally:
        for loop, stop in control:
            loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE)
