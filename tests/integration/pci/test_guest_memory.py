"""Guest memory from a device: bounds, views, messages, and quiescing before it changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import runpy
import socket
import struct
from pathlib import Path

import pytest
from pci_device import Everything, connect, off_loop
from vfio_fds import until
from vfio_guest import Client
from vfio_target import VERSION

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command, Header
from nvmf_vfio.protocol.messages import DmaAccess, DmaMap, RegionAccess
from nvmf_vfio.protocol.version import Version
from nvmuser.errors import DeviceError, UsageError
from nvmuser.pci import Region, Reset, Server


async def test_guest_memory_across_regions_and_within_bounds(
    device: Everything, client: Client, guest_memory: Descriptor
) -> None:
    def register() -> None:
        client.map(0x10000, 0x1000, guest_memory, 0x3000)
        client.map(0x11000, 0x2000, guest_memory, 0x8000)
        client.call(Command.DMA_MAP, DmaMap(DmaMap.READ, 0, 0x20000, 0x1000).pack(), [guest_memory])

    await off_loop(register)
    assert device.memory.regions == (
        Region(0x10000, 0x1000, True), Region(0x11000, 0x2000, True), Region(0x20000, 0x1000, True)
    )  # fmt: skip
    device.memory.write(0x10FFC, b"crossing")
    assert os.pread(guest_memory.fileno(), 4, 0x3FFC) + os.pread(guest_memory.fileno(), 4, 0x8000) == b"crossing"
    assert device.memory.read(0x10FFC, 8) == b"crossing"
    with device.memory.mapped(0x10FFC, 8, write=True) as views:
        assert [bytes(view) for view in views] == [b"cros", b"sing"]
        views[1][:2] = b"SI"
    assert os.pread(guest_memory.fileno(), 4, 0x8000) == b"SIng"
    with device.memory.mapped(0x11000, 4) as (view,), pytest.raises(TypeError):
        view[0] = 1

    for address, size in ((0xFFFF, 2), (0x12FFF, 2), (0x12FFF, (1 << 64) - 0x12FFF)):
        with pytest.raises(DeviceError, match="not registered"):
            device.memory.mapped(address, size).__enter__()
    with pytest.raises(DeviceError, match="Permission denied"):
        device.memory.write(0x20000, b"x")
    for address, size in ((0x10000, 0), (-1, 1), (1 << 63, 1 << 63 | 1)):
        with pytest.raises(UsageError):
            device.memory.read(address, size)
    await off_loop(client.unmap, 0x10000, 0x1000)
    with pytest.raises(DeviceError, match="0x10ffc is not registered"):
        device.memory.read(0x10FFC, 8)


async def test_the_entropy_device_makes_no_more_than_a_page(path: Path, guest_memory: Descriptor) -> None:
    """Of 4 GiB that a driver may ask for."""
    asked: list[int] = []

    def source(size: int) -> bytes:
        asked.append(size)
        return b"\x5a" * min(size, 8192)

    def ask(client: Client) -> None:
        client.map(0x10000, 0x8000, guest_memory, 0)
        table, available, used, buffer = 0x10000, 0x11000, 0x12000, 0x14000
        os.pwrite(guest_memory.fileno(), struct.pack("<QIHH", buffer, 0xFFFFFFFF, 2, 0), 0)
        os.pwrite(guest_memory.fileno(), struct.pack("<HHH", 0, 1, 0), 0x1000)
        for offset, size, value in ((32, 8, table), (40, 8, available), (48, 8, used), (28, 2, 1), (0x1000, 2, 0)):
            client.write(offset, size, value, 0)

    sample = runpy.run_path(str(Path(__file__).parents[3] / "samples/virtio_rng.py"))
    async with Server(sample["VirtioRng"](source), path):
        client = await off_loop(connect, path)
        await off_loop(ask, client)
        client.close()
    assert asked == [4096]
    assert os.pread(guest_memory.fileno(), 0x1001, 0x4000) == b"\x5a" * 4096 + b"\0"
    assert struct.unpack("<HHII", os.pread(guest_memory.fileno(), 12, 0x2000)) == (0, 1, 0, 4096)


async def test_memory_that_the_client_has_truncated_is_an_error(
    device: Everything, client: Client, guest_memory: Descriptor
) -> None:
    await off_loop(client.map, 0, 0x10000, guest_memory)
    os.ftruncate(guest_memory.fileno(), 0x1000)
    with pytest.raises(DeviceError, match="Bad address"):
        device.memory.read(0x2000, 16)
    with pytest.raises(DeviceError, match="Bad address"):
        device.memory.write(0xFF8, bytes(16))


async def test_memory_that_is_not_mappable_is_asked_of_the_client(device: Everything, client: Client) -> None:
    await off_loop(client.map, 0x1000, 0x1000, None)
    got: list[bytes] = []
    device.on_write = lambda value: got.append(device.memory.read(0x1800, 4))

    def access() -> None:
        client.send(Command.REGION_WRITE, RegionAccess(0, 2, 1, b"x").pack())
        request = client.receive()
        assert request.header.command == Command.DMA_READ
        asked = DmaAccess.unpack(request.body)
        assert (asked.address, asked.count) == (0x1800, 4)
        body = DmaAccess(0x1800, 4, b"data").pack()
        client.send_raw(Header(request.header.id, Command.DMA_READ, Header.SIZE + len(body), 1).pack() + body)
        assert client.receive().header.is_reply

    await off_loop(access)
    assert got == [b"data"]
    with pytest.raises(DeviceError, match="Bad address"):
        device.memory.mapped(0x1800, 4).__enter__()


async def test_a_client_that_does_not_answer_loses_its_device(device: Everything, path: Path) -> None:
    """Asked on the socket that the library makes for it (twin_socket)."""
    with contextlib.closing(await off_loop(Client, path)) as client:
        offer = Version(0, 1, {**VERSION.capabilities, "twin_socket": {"supported": True}, "max_msg_fds": 8})
        client.send(Command.VERSION, offer.pack())
        _, descriptors, _, _ = await off_loop(socket.recv_fds, client.socket, 4096, 1)
        with socket.socket(fileno=descriptors[0]) as twin:
            await off_loop(client.map, 0x1000, 0x1000, None)
            device.on_write = lambda value: device.memory.write(0x1800, b"data")
            client.send(Command.REGION_WRITE, RegionAccess(0, 2, 1, b"x").pack())
            assert Header.unpack(await off_loop(twin.recv, 4096), limit=4096).command == Command.DMA_WRITE
            assert await off_loop(client.is_closed)
    (await off_loop(connect, path)).close()


async def test_the_client_waits_while_its_memory_is_in_use(
    device: Everything, client: Client, guest_memory: Descriptor
) -> None:
    await off_loop(client.map, 0, 0x1000, guest_memory)
    with device.memory.mapped(0, 0x1000, write=True) as (view,):
        kept = view[0x10:0x20]
    unmap = asyncio.ensure_future(off_loop(client.unmap, 0, 0x1000))
    await until(lambda: not device.memory.by_message)
    kept[0] = 0x42
    assert not unmap.done()
    assert os.pread(guest_memory.fileno(), 1, 0x10) == b"\x42"
    del kept
    await unmap
    assert device.memory.regions == ()


async def test_the_client_waits_for_a_device_that_quiesces_in_its_own_time(
    device: Everything, client: Client, guest_memory: Descriptor
) -> None:
    asked, quiet = asyncio.Event(), asyncio.Event()

    async def quiesce() -> None:
        asked.set()
        await quiet.wait()

    device.on_quiesce = quiesce
    mapping = asyncio.ensure_future(off_loop(client.map, 0, 0x1000, guest_memory))
    await asked.wait()
    assert not mapping.done()
    assert device.memory.regions == ()
    quiet.set()
    await mapping
    assert device.memory.regions == (Region(0, 0x1000, True),)
    quiet.clear(), asked.clear()
    client.close()
    await asked.wait()
    assert device.resets == []
    quiet.set()
    await until(lambda: device.resets == [Reset.LOST_CONNECTION])


async def test_a_device_that_cannot_quiesce_loses_its_client(
    device: Everything, client: Client, path: Path, guest_memory: Descriptor, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise RuntimeError("stuck")

    device.on_quiesce = fail
    with pytest.raises(EOFError):
        await off_loop(client.map, 0, 0x1000, guest_memory)
    assert "quiescing failed: stuck" in caplog.text
    device.on_quiesce = lambda: None
    (await off_loop(connect, path)).close()


async def test_views_of_guest_memory_outlive_their_server(path: Path, guest_memory: Descriptor) -> None:
    async with Server(device := Everything(), path):
        client = await off_loop(connect, path)
        await off_loop(client.map, 0, 0x1000, guest_memory)
        stack = device.memory.mapped(0, 0x1000, write=True)
        (view,) = stack.__enter__()
    client.close()
    view[0] = 0x77
    assert os.pread(guest_memory.fileno(), 1, 0) == b"\x77"
    assert device.resets == []
    stack.__exit__(None, None, None)
    del view
    assert device.resets == [Reset.LOST_CONNECTION]
