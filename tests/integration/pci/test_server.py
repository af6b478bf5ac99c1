"""Serving devices: resets, one client after the other, many devices in one loop, what is left afterwards."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from pci_device import CONFIG, Everything, capabilities, connect, off_loop
from vfio_fds import descriptors_open, until
from vfio_guest import Client

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command, Header
from nvmf_vfio.protocol.messages import RegionAccess
from nvmuser.errors import ConflictError, DeviceError, UsageError
from nvmuser.pci import PciExpress, Reset, Server
from nvmuser.pci import server as serving


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
