"""The endpoint as Cloud Hypervisor's client sees it: its messages, and replies of exactly the sizes that it reads.

It never looks at the header's error, and waits for ever for a reply that is shorter.

Written after what the client sends (rust-vmm/vfio, vfio-user/src/lib.rs); Cloud Hypervisor itself is not in Debian.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import select
import socket
import struct
from pathlib import Path

import pytest

from nvmuser.bench.measure.deployment import Deployment

HEADER = struct.Struct("<HHIII")
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, READ, WRITE, RESET = (
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    10,
    13,
)
BAR0, CONFIG, MSIX = 0, 7, 2
MEMORY, GUEST = 1 << 20, 0x100000
CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000


class Client:
    """What of Cloud Hypervisor speaks vfio-user."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self._id = 0

    def close(self) -> None:
        self.socket.close()

    def call(self, command: int, body: bytes, expected: int, descriptors: tuple[int, ...] = ()) -> bytes:
        """Send a request; the body of the reply, which is read as long as the client believes it to be."""
        request = HEADER.pack(self._id, command, HEADER.size + len(body), 0, 0) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([request], rights)
        number, replied, size, flags, error = HEADER.unpack(self._exactly(HEADER.size))
        assert (number, replied, flags & 0xF, error) == (self._id, command, 1, 0)
        assert size == HEADER.size + expected
        self._id += 1
        return self._exactly(expected)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.socket.recv(size - len(data)) or exit_early()
        return data

    def negotiate(self, *, wrapped: bool) -> None:
        """Exchange capabilities. :param wrapped: as the specification has it; older versions had them bare."""
        wanted: dict[str, object] = {"max_msg_fds": 1, "max_data_xfer_size": 1048576, "migration": {"pgsize": 4096}}
        text = json.dumps({"capabilities": wanted} if wrapped else wanted, separators=(",", ":"))
        body = struct.pack("<HH", 0, 0) + text.encode() + b"\0"
        self.socket.sendall(HEADER.pack(self._id, VERSION, HEADER.size + len(body), 0, 0) + body)
        _, _, size, _, _ = HEADER.unpack(self._exactly(HEADER.size))
        self._id += 1
        found = json.loads(self._exactly(size - HEADER.size)[4:-1])["capabilities"]
        # It wants these types, and no more than 32 bits; what is missing has a default.
        numbers = [found.get("max_msg_fds", 1), found.get("max_data_xfer_size", 1)]
        numbers += [found["migration"]["pgsize"]] if "migration" in found else []
        assert all(isinstance(number, int) and 0 < number < 1 << 32 for number in numbers)

    def regions(self) -> list[tuple[int, int]]:
        """Flags and size of each."""
        # argsz counts the header, too.
        _, flags, regions, irqs = struct.unpack("<4I", self.call(GET_INFO, struct.pack("<4I", 32, 0, 0, 0), 16))
        assert flags & 2, "a PCI device"
        assert irqs == 5
        found = []
        for index in range(regions):
            reply = self.call(REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0), 32)
            argsz, flags, number, _, size, _ = struct.unpack("<IIIIQQ", reply)
            assert (argsz, number) == (32, index), "what is longer would be asked for again"
            found.append((flags, size))
        return found

    def read(self, region: int, offset: int, size: int) -> int:
        reply = self.call(READ, struct.pack("<QII", offset, region, size), 16 + size)
        return int.from_bytes(reply[16:], "little")

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        self.call(WRITE, struct.pack("<QII", offset, region, size) + value.to_bytes(size, "little"), 16)

    def irq(self, index: int) -> int:
        """How many vectors."""
        _, _, number, count = struct.unpack("<4I", self.call(IRQ_INFO, struct.pack("<4I", 16, 0, index, 0), 16))
        assert number == index
        return int(count)


def exit_early() -> bytes:
    raise EOFError("the endpoint has hung up")


async def test_its_client_finds_the_device_and_drives_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("d")  # a short name, for the sockets in it
    async with Deployment.start(root / "s") as deployment:
        for name in ("old", "new"):
            (root / name).write_bytes(bytes(1 << 20))
            path = await deployment.disk(name, root / name)
            await asyncio.to_thread(drive, path, wrapped=name == "new")


def drive(path: Path, *, wrapped: bool) -> None:
    with contextlib.closing(Client(path)) as client:
        client.negotiate(wrapped=wrapped)
        use(client)


def use(client: Client) -> None:
    regions = client.regions()
    assert len(regions) >= 8
    assert not regions[BAR0][0] & 4, "registers are trapped: nothing of BAR 0 is mapped"
    look_at_configuration(client, regions[BAR0][1])
    assert client.irq(MSIX) >= 1

    with contextlib.ExitStack() as stack:
        memory, event = os.memfd_create("guest"), os.eventfd(0)
        stack.callback(os.close, memory)
        stack.callback(os.close, event)
        serve(client, memory, event)


def serve(client: Client, memory: int, event: int) -> None:
    os.truncate(memory, MEMORY)
    client.call(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, GUEST, MEMORY), 0, (memory,))
    client.call(SET_IRQS, struct.pack("<5I", 20, 1 << 2 | 1 << 5, MSIX, 0, 1), 0, (event,))
    identify(client, memory, event)
    client.write(BAR0, CC, 4, 0)
    client.call(SET_IRQS, struct.pack("<5I", 20, 1 | 1 << 5, MSIX, 0, 0), 0)
    client.call(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, GUEST, MEMORY), 24)
    client.call(RESET, b"", 0)
    client.socket.shutdown(socket.SHUT_RDWR)


def look_at_configuration(client: Client, size: int) -> None:
    assert client.read(CONFIG, 0x0A, 2) == 0x0108
    low = client.read(CONFIG, 0x10, 4)
    client.write(CONFIG, 0x10, 4, 0xFFFFFFFF)
    assert -(client.read(CONFIG, 0x10, 4) & ~0xF) & 0xFFFFFFFF == size
    client.write(CONFIG, 0x10, 4, low)
    client.write(CONFIG, 0x04, 2, 0x6)  # memory, bus master


def identify(client: Client, memory: int, event: int) -> None:
    """Enable the controller; one command, its interrupt and its data."""
    client.write(BAR0, AQA, 4, 7 << 16 | 7)
    client.write(BAR0, ASQ, 8, GUEST)
    client.write(BAR0, ACQ, 8, GUEST + 0x1000)
    client.write(BAR0, CC, 4, 0x460001)
    while not client.read(BAR0, CSTS, 4) & 1:
        pass
    command = struct.pack("<BBHI16xQQI20x", 0x06, 0, 1, 0, GUEST + 0x2000, 0, 1)
    os.pwrite(memory, command, 0)
    client.write(BAR0, DOORBELLS, 4, 1)
    assert select.select([event], [], [], 20)[0]
    (status,) = struct.unpack("<H", os.pread(memory, 2, 0x1000 + 14))
    assert status == 1, "successful, in the first phase"
    assert os.pread(memory, 4096, 0x2000)[4:24].strip()
