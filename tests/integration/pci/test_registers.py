"""A device's BARs: registers, mapped areas, and exceptions in a callback."""

from __future__ import annotations

import errno
import mmap
import struct
from pathlib import Path

import pytest
from pci_device import Everything, connect, off_loop
from vfio_guest import Client, Refusal

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command, Header
from nvmf_vfio.protocol.messages import RegionAccess, RegionInfo
from nvmuser.errors import DeviceError, UsageError
from nvmuser.pci import Server


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
