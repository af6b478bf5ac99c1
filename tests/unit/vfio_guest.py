"""A guest for tests: its QEMU, which speaks vfio-user, and its NVMe driver."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import time
from pathlib import Path

from vfio_fds import PATIENCE, eventfd, memory
from vfio_target import VERSION

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import MAX_TARGET_MESSAGE, Command, Flag, Header
from nvmf_vfio.protocol.messages import DmaMap, DmaUnmap, RegionAccess, SetIrqs
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.protocol.wire import Message
from nvmf_vfio.state.registers import BAR0, DOORBELLS, Register

ASQ, ACQ, ENTRIES = 0x1000, 0x2000, 8


def entry(opcode: int, identifier: int = 0, *, prp1: int = 0, cdw10: int = 0, cdw11: int = 0) -> bytes:
    """A submission queue entry."""
    return struct.pack("<BBH20xQ8xII16x", opcode, 0, identifier, prp1, cdw10, cdw11)


class Refusal(Exception):
    """An error reply."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


class Client:
    """A guest's QEMU, blocking. Its descriptors are its own."""

    def __init__(self, path: Path, timeout: float = PATIENCE) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(timeout)
        end = time.monotonic() + timeout
        while True:
            try:
                self.socket.connect(os.fspath(path))
                break
            except BlockingIOError:
                # The backlog is full of those who came before and have gone again.
                assert time.monotonic() < end, "the endpoint does not accept"
            except OSError:
                self.socket.close()
                raise
        self._next = 0

    def send(
        self, command: int, body: bytes = b"", descriptors: list[Descriptor] | None = None, *, flags: int = 0
    ) -> int:
        """Send a request; its id."""
        self._next = (self._next + 1) & 0xFFFF
        header = Header(self._next, command, Header.SIZE + len(body), flags)
        self.send_raw(header.pack() + body, descriptors)
        return self._next

    def send_raw(self, data: bytes, descriptors: list[Descriptor] | None = None) -> None:
        numbers = array.array("i", [descriptor.fileno() for descriptor in descriptors or []])
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
        sent = self.socket.sendmsg([data], control, socket.MSG_NOSIGNAL)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def receive(self) -> Message:
        """:raises EOFError: the other end has closed the connection."""
        header = Header.unpack(self._exactly(Header.SIZE), limit=MAX_TARGET_MESSAGE)
        return Message(header, self._exactly(header.size - Header.SIZE))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self.socket.recv(size - len(data))
            except ConnectionError:
                piece = b""
            if not piece:
                raise EOFError
            data += piece
        return data

    def call(self, command: int, body: bytes = b"", descriptors: list[Descriptor] | None = None) -> bytes:
        """:raises Refusal: an error reply."""
        identifier = self.send(command, body, descriptors)
        message = self.receive()
        assert (message.header.id, message.header.is_reply) == (identifier, True)
        if message.header.flags & Flag.ERROR:
            raise Refusal(message.header.error)
        return message.body

    def hello(self) -> Version:
        return Version.unpack(self.call(Command.VERSION, VERSION.pack()))

    def read(self, offset: int, count: int, region: int = BAR0) -> int:
        body = self.call(Command.REGION_READ, RegionAccess(offset, region, count).pack())
        return int.from_bytes(RegionAccess.unpack(body, with_data=True).data, "little")

    def write(self, offset: int, count: int, value: int, region: int = BAR0) -> None:
        data = value.to_bytes(count, "little")
        self.call(Command.REGION_WRITE, RegionAccess(offset, region, count, data).pack())

    def post(self, offset: int, count: int, value: int) -> None:
        body = RegionAccess(offset, BAR0, count, value.to_bytes(count, "little")).pack()
        self.send(Command.REGION_WRITE, body, flags=Flag.NO_REPLY)

    def map(self, address: int, size: int, held: Descriptor | None, offset: int = 0) -> None:
        self.call(Command.DMA_MAP, DmaMap(3, offset, address, size).pack(), [held] if held else [])

    def unmap(self, address: int, size: int) -> None:
        self.call(Command.DMA_UNMAP, DmaUnmap(0, address, size).pack())

    def interrupts(self, held: list[Descriptor], index: int = 2, start: int = 0) -> None:
        request = SetIrqs(SetIrqs.DATA_EVENTFD | SetIrqs.TRIGGER, index, start, len(held))
        self.call(Command.DEVICE_SET_IRQS, request.pack(), held)

    def is_closed(self) -> bool:
        """Whether the other end has ended the connection; waits for it."""
        try:
            while True:
                self.receive()
        except EOFError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.socket.close()


class Driver:
    """A guest's NVMe driver: memory, one interrupt, the admin queues at ASQ and ACQ with `ENTRIES` entries each."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.memory = memory()
        self.interrupt = eventfd()
        self._tail = 0
        self._head = 0

    def set_up(self) -> None:
        """As QEMU and then the driver do at boot."""
        self.client.hello()
        self.client.map(0, 1 << 20, self.memory)
        self.client.interrupts([self.interrupt])
        self.enable()

    def enable(self) -> None:
        """Set up the admin queues, and enable the controller without waiting for it."""
        self._tail = self._head = 0
        os.pwrite(self.memory.fileno(), bytes(0x1000), ACQ)
        self.client.write(Register.AQA, 4, (ENTRIES - 1) << 16 | (ENTRIES - 1))
        self.client.write(Register.ASQ, 8, ASQ)
        self.client.write(Register.ACQ, 8, ACQ)
        self.client.write(Register.CC, 4, 0x460001)

    def disable(self) -> None:
        self.client.write(Register.CC, 4, 0x460000)

    def csts(self) -> int:
        return self.client.read(Register.CSTS, 4)

    def submit(self, opcode: int, identifier: int, *, prp1: int = 0, cdw10: int = 0, cdw11: int = 0) -> None:
        command = entry(opcode, identifier, prp1=prp1, cdw10=cdw10, cdw11=cdw11)
        os.pwrite(self.memory.fileno(), command, ASQ + 64 * self._tail)
        self._tail = (self._tail + 1) % ENTRIES
        self.client.write(DOORBELLS, 4, self._tail)

    def completion(self, slot: int) -> tuple[int, int, int]:
        """A slot's dword 0, command identifier and phase tag."""
        entry = os.pread(self.memory.fileno(), 16, ACQ + 16 * slot)
        dword0, _, _, _, identifier, status = struct.unpack("<IIHHHH", entry)
        return dword0, identifier, status & 1

    def complete(self, slot: int, identifier: int, phase: int = 1) -> None:
        """What a target does: a completion in a slot."""
        os.pwrite(self.memory.fileno(), struct.pack("<IIHHHH", 0, 0, 0, 0, identifier, phase), ACQ + 16 * slot)

    def consume(self, head: int) -> None:
        self._head = head
        self.client.write(DOORBELLS + 4, 4, head)

    def close(self) -> None:
        self.client.close()
        self.memory.close()
        self.interrupt.close()


def capabilities_text(capabilities: object) -> bytes:
    return struct.pack("<HH", 0, 1) + json.dumps({"capabilities": capabilities}).encode() + b"\0"
