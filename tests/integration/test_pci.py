"""Devices in Python on the real libvfio-user, before a client that does what QEMU does, and what QEMU never would."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import runpy
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
from vfio_fds import descriptors_open, eventfd, memory, signals, until
from vfio_guest import Client, Refusal
from vfio_target import VERSION

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command, Header
from nvmf_vfio.protocol.messages import DmaAccess, DmaMap, RegionAccess, RegionInfo, SetIrqs
from nvmf_vfio.protocol.version import Version
from nvmuser.errors import ConflictError, DeviceError, UsageError
from nvmuser.pci import (
    Area,
    Bar,
    ClassCode,
    Identity,
    Msi,
    MsiX,
    PciDevice,
    PciExpress,
    PowerManagement,
    Region,
    Reset,
    Server,
    Space,
    Vendor,
)
from nvmuser.pci import server as serving
from nvmuser.toolchain import find_spdk

CONFIG = 7
P = ParamSpec("P")
T = TypeVar("T")


class Everything(PciDevice):
    """A device with all there is. BAR 2 is memory without meaning, but for what `on_write` does."""

    identity = Identity(0x1234, 0x5678, 0x9ABC, 0xDEF0, revision=7)
    class_code = ClassCode(0x12, 0x34, 0x56)
    bars = (Bar(0, 0x4000, mappable=(Area(0x1000, 0x2000),)), Bar(2, 0x100, space=Space.IO), Bar(4, 1 << 20, wide=True))
    capabilities = (PowerManagement(), Msi(4), MsiX(8, table_bar=4), PciExpress(), Vendor(b"nvmuser"))
    intx = True

    def __init__(self) -> None:
        self.store = bytearray(0x100)
        self.seen: list[tuple[str, int, int, int]] = []
        self.resets: list[Reset] = []
        self.on_write: Callable[[int], None] = lambda value: None
        self.on_quiesce: Callable[[], Awaitable[None] | None] = lambda: None

    def read(self, bar: int, offset: int, size: int) -> int:
        self.seen.append(("read", bar, offset, size))
        return int.from_bytes(self.store[offset : offset + size], "little")

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.seen.append(("write", bar, offset, size))
        self.store[offset : offset + size] = value.to_bytes(size, "little")
        self.on_write(value)

    def reset(self, kind: Reset) -> None:
        self.resets.append(kind)

    def quiesce(self) -> Awaitable[None] | None:
        return self.on_quiesce()


async def off_loop(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the blocking client does, while the loop serves it."""
    return await asyncio.to_thread(call, *args, **kwargs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sock"


@pytest.fixture
async def device(path: Path) -> AsyncIterator[Everything]:
    device = Everything()
    async with Server(device, path):
        yield device


@pytest.fixture
async def client(device: Everything, path: Path) -> AsyncIterator[Client]:
    client = await off_loop(connect, path)
    yield client
    client.close()


def connect(path: Path) -> Client:
    client = Client(path)
    client.hello()
    return client


@pytest.fixture
def guest_memory() -> Iterator[Descriptor]:
    with memory(1 << 20) as descriptor:
        yield descriptor


def config(client: Client, offset: int, size: int) -> int:
    return client.read(offset, size, CONFIG)


def capabilities(client: Client) -> dict[int, int]:
    """Where each lies, by its id."""
    found, at = {}, config(client, 0x34, 1)
    while at:
        found[config(client, at, 1)] = at
        at = config(client, at + 1, 1)
    return found


async def test_a_guest_sees_what_is_declared(client: Client) -> None:
    def look() -> None:
        assert (config(client, 0, 4), config(client, 0x2C, 4)) == (0x5678_1234, 0xDEF0_9ABC)
        assert config(client, 8, 4) == 0x12345607
        assert [config(client, 0x10 + 4 * bar, 4) for bar in range(6)] == [0, 1, 1, 1, 4, 1]
        assert config(client, 0x3D, 1) == 1, "INTA#"
        places = capabilities(client)
        assert list(places) == [PowerManagement.ID, Msi.ID, MsiX.ID, PciExpress.ID, Vendor.ID]
        assert config(client, places[Vendor.ID] + 3, 4).to_bytes(4, "little") == b"nvmu"
        with pytest.raises(Refusal):
            client.write(places[Vendor.ID] + 4, 1, 0, CONFIG)
        for index, count in ((0, 1), (1, 4), (2, 8)):
            reply = client.call(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
            assert struct.unpack("<IIII", reply)[3] == count

    await off_loop(look)


async def test_a_conventional_device_has_256_bytes_of_configuration_space(path: Path) -> None:
    class Conventional(Everything):
        capabilities = (PowerManagement(),)

    async with Server(Conventional(), path):
        client = await off_loop(connect, path)
        reply = await off_loop(client.call, Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, CONFIG).pack())
        assert RegionInfo.unpack(reply).size == 256
        assert await off_loop(config, client, 248, 8) == 0
        with pytest.raises(Refusal):
            await off_loop(config, client, 252, 8)
        client.close()


async def test_configuration_space_of_its_own(device: Everything, client: Client) -> None:
    device.config_put(0xF00, 4, 0xCAFE)
    assert await off_loop(config, client, 0xF00, 4) == 0xCAFE
    await off_loop(client.write, 0xF00, 4, 1, CONFIG)
    assert device.config_get(0xF00, 4) == 0xCAFE, "a reserved register ignores writes"
    with pytest.raises(UsageError, match="has 4096"):
        device.config_get(4094, 4)


@pytest.mark.parametrize(("offset", "size"), [(8, 12), (11, 2), (0, 8), (3, 4)])
async def test_a_write_that_no_bus_could_carry_never_gets_to_the_library(
    device: Everything, client: Client, path: Path, offset: int, size: int
) -> None:
    """It copies such writes to a capability over its own stack."""
    place = (await off_loop(capabilities, client))[MsiX.ID]
    with pytest.raises(EOFError):
        await off_loop(client.write, place + offset, size, (1 << 8 * size) - 1, CONFIG)
    assert device.config_get(place + 2, 2) == 7, "not carried out"
    (await off_loop(connect, path)).close()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
async def test_registers_of_every_size(device: Everything, client: Client, size: int) -> None:
    value = 0x8877665544332211 & (1 << 8 * size) - 1
    await off_loop(client.write, 0x10, size, value, 2)
    assert await off_loop(client.read, 0x10, size, 2) == value
    assert device.seen == [("write", 2, 0x10, size), ("read", 2, 0x10, size)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("value", [~0x55, -1, 1 << 64 | 0x77])
async def test_of_a_value_that_fits_no_register_the_low_bytes_count(path: Path, size: int, value: int) -> None:
    class Wide(Everything):
        def read(self, bar: int, offset: int, size: int) -> int:
            return value

    async with Server(Wide(), path):
        client = await off_loop(connect, path)
        assert await off_loop(client.read, 0x10, size, 2) == value & (1 << 8 * size) - 1
        client.close()


async def test_an_access_of_another_size_comes_in_pieces(device: Everything, client: Client) -> None:
    await off_loop(client.write, 0x11, 13, int.from_bytes(b"thirteen more", "little"), 2)
    assert device.store[0x11:0x1E] == b"thirteen more"
    pieces = [(offset, size) for _, _, offset, size in device.seen]
    assert pieces == [(0x11, 1), (0x12, 2), (0x14, 4), (0x18, 4), (0x1C, 2)]


async def test_an_access_beyond_a_bar_never_gets_to_the_device(device: Everything, client: Client) -> None:
    with pytest.raises(Refusal):
        await off_loop(client.read, 0xFC, 8, 2)
    assert device.seen == []


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (ValueError("no such value"), errno.EIO),
        (PermissionError(errno.EPERM, "no"), errno.EPERM),
        (DeviceError("not there", errno.ENXIO), errno.ENXIO),
    ],
)
async def test_an_exception_is_an_error_to_the_guest_and_a_traceback_in_the_log(
    device: Everything, client: Client, caplog: pytest.LogCaptureFixture, error: Exception, number: int
) -> None:
    def fail(value: int) -> None:
        raise error

    device.on_write = fail
    with pytest.raises(Refusal) as refusal:
        await off_loop(client.write, 0, 4, 1, 2)
    assert refusal.value.errno == number
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert await off_loop(client.read, 0, 4, 2) == 1, "it goes on"


async def test_what_is_no_exception_ends_the_serving(path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(value: int) -> None:
        raise Stop

    device = Everything()
    device.on_write = stop

    async def until_stopped() -> None:
        async with Server(device, path) as server:
            client = await off_loop(connect, path)
            client.send(Command.REGION_WRITE, RegionAccess(0, 2, 1, b"x").pack())
            try:
                await server.wait()
            finally:
                client.close()

    with pytest.raises(Stop):
        await until_stopped()


async def test_a_mapped_area_is_shared_and_the_rest_is_not(device: Everything, client: Client) -> None:
    request = RegionInfo(256, 0, 0).pack()

    def get_info() -> tuple[RegionInfo, int]:
        client.send(Command.DEVICE_GET_REGION_INFO, request)
        data, control, _, _ = client.socket.recvmsg(4096, 64)
        (number,) = struct.unpack("i", control[0][2])
        return RegionInfo.unpack(data[Header.SIZE :]), number

    info, number = await off_loop(get_info)
    assert info.flags & RegionInfo.MMAP
    assert struct.unpack("<HHIIIQQ", info.capabilities) == (1, 1, 0, 1, 0, 0x1000, 0x2000)
    with Descriptor(number), mmap.mmap(number, 0x4000) as shared:
        device.bar_memory(0)[0x1234] = 0x55
        assert shared[0x1234] == 0x55
        await off_loop(client.write, 0x1238, 4, 0xDEAD, 0)
        assert shared[0x1238:0x123C] == b"\xad\xde\0\0"
    assert device.seen == []
    await off_loop(client.read, 0x80, 4, 0)
    assert device.seen == [("read", 0, 0x80, 4)]
    with pytest.raises(UsageError, match="not mappable"):
        device.bar_memory(4)


@pytest.mark.parametrize(("index", "vectors"), [(1, 4), (2, 8)])
async def test_message_interrupts(
    device: Everything, client: Client, index: int, vectors: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert not device.trigger(1), "the guest has enabled none"
    assert caplog.records == [], "which is nothing to complain about"
    held = [eventfd() for _ in range(vectors)]
    await off_loop(client.interrupts, held, index)
    assert device.trigger(vectors - 1)
    assert device.trigger(0)
    assert [signals(descriptor) for descriptor in held] == [1, *[0] * (vectors - 2), 1]
    with pytest.raises(DeviceError):
        device.trigger(100)
    for descriptor in held:
        descriptor.close()


async def test_an_interrupt_pin_is_a_level(device: Everything, client: Client) -> None:
    def mask(action: int) -> None:
        client.call(Command.DEVICE_SET_IRQS, SetIrqs(SetIrqs.DATA_NONE | action, 0, 0, 1).pack())

    with eventfd() as line:
        await off_loop(client.interrupts, [line], 0)
        device.set_intx(True)
        device.set_intx(True)
        assert signals(line) == 1
        await off_loop(mask, SetIrqs.UNMASK)
        assert signals(line) == 1, "served, and still asserted"
        device.set_intx(False)
        await off_loop(mask, SetIrqs.UNMASK)
        assert signals(line) == 0
        await off_loop(mask, SetIrqs.MASK)
        device.set_intx(True)
        assert signals(line) == 0
        await off_loop(mask, SetIrqs.UNMASK)
        assert signals(line) == 1


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

    sample = runpy.run_path(str(Path(__file__).parents[2] / "samples/virtio_rng.py"))
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


async def test_every_kind_of_reset(device: Everything, client: Client) -> None:
    await off_loop(client.call, Command.DEVICE_RESET)
    place = (await off_loop(capabilities, client))[PciExpress.ID]
    await off_loop(client.write, place + 8, 2, 1 << 15, CONFIG)
    client.close()
    await until(lambda: len(device.resets) == 3)
    assert device.resets == [Reset.DEVICE, Reset.FUNCTION, Reset.LOST_CONNECTION]


async def test_state_survives_from_one_client_to_the_next(device: Everything, client: Client, path: Path) -> None:
    await off_loop(client.write, 4, 4, 0x1234, 2)
    client.close()
    second = await off_loop(connect, path)
    assert await off_loop(second.read, 4, 4, 2) == 0x1234
    second.close()


async def test_many_devices_in_one_loop_whatever_some_clients_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client says nothing at all, one half a message; the others are served."""
    monkeypatch.setattr(serving, "ATTACH_SECONDS", 0.5)
    monkeypatch.setattr(serving, "PARTIAL_SECONDS", 0.5)
    devices = [Everything() for _ in range(8)]
    paths = [tmp_path / f"{number}.sock" for number in range(8)]
    servers = [Server(device, path) for device, path in zip(devices, paths, strict=True)]
    for server in servers:
        await server.__aenter__()
    mute = Client(paths[0])
    half = await off_loop(connect, paths[1])
    half.send_raw(Header(1, Command.REGION_WRITE, 64).pack() + b"half")
    good = [await off_loop(connect, path) for path in paths[2:]]

    async def use(client: Client, device: Everything) -> None:
        for value in range(100):
            await off_loop(client.write, 0, 4, value, 2)
            assert await off_loop(client.read, 0, 4, 2) == value

    await asyncio.gather(*(use(client, device) for client, device in zip(good, devices[2:], strict=True)))
    assert await off_loop(mute.is_closed)
    assert await off_loop(half.is_closed)
    again = [await off_loop(connect, path) for path in paths[:2]]
    for client in (mute, half, *good, *again):
        client.close()
    for server in servers:
        await server.__aexit__(None, None, None)


async def test_a_client_that_reads_no_replies_is_disconnected(device: Everything, client: Client, path: Path) -> None:
    request = RegionAccess(0, 4, 1 << 16).pack()

    def flood() -> None:
        while True:
            client.send(Command.REGION_READ, request)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        await off_loop(flood)
    (await off_loop(connect, path)).close()


async def test_nothing_is_left_of_a_server(path: Path, guest_memory: Descriptor) -> None:
    async def once() -> None:
        async with Server(device := Everything(), path):
            client = await off_loop(connect, path)
            await off_loop(client.map, 0, 0x1000, guest_memory)
            assert device.memory.read(0, 1) == b"\0"
        assert await off_loop(client.is_closed)
        client.close()
        assert device.resets == [Reset.LOST_CONNECTION]
        with pytest.raises(DeviceError, match="not served"):
            device.trigger()

    await once()
    before = descriptors_open()
    for _ in range(10):
        await once()
    assert descriptors_open() == before
    assert not path.exists()


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


async def test_a_socket_is_taken_over_from_the_dead_and_not_from_the_living(device: Everything, path: Path) -> None:
    with pytest.raises(ConflictError, match="answers at this socket already"):
        await Server(Everything(), path).__aenter__()
    with pytest.raises(ConflictError, match="served already"):
        await Server(device, path.with_name("other")).__aenter__()
    with pytest.raises(UsageError, match="107"):
        await Server(Everything(), Path("/tmp") / ("x" * 200)).__aenter__()
    stale = path.with_name("stale")
    async with Server(Everything(), stale):
        os.link(stale, path.with_name("kept"))
    async with Server(Everything(), path.with_name("kept")):
        (await off_loop(connect, path.with_name("kept"))).close()


def test_no_module_says_so(tmp_path: Path) -> None:
    """What a device declares is known without; who serves it is told how to get the module."""
    code = f"""
import asyncio
from pathlib import Path
from nvmuser.pci import ClassCode, Identity, PciDevice, serve
class Device(PciDevice):
    identity = Identity(vendor=0x1234, device=1)
    class_code = ClassCode(0xFF, 0)
asyncio.run(serve({{Path({str(tmp_path / "device.sock")!r}): Device()}}))
"""
    env = {**os.environ, "NVMUSER_CACHE": str(tmp_path), "NVMUSER_SPDK": str(find_spdk().prefix)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert "SetupError: nvmuser_vfu has not been built" in done.stderr
    assert "make setup" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("*.sock"))
