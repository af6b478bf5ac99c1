"""A device in Python whose guest migrates: its state, its interrupts, and the log of what it writes."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pci_device import Everything, connect, off_loop
from vfio_fds import eventfd, memory, signals
from vfio_guest import Client, Refusal
from vfio_migration import Qemu

from nvmf_vfio.protocol import migration as wire
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DeviceFeature, RegionAccess
from nvmf_vfio.protocol.migration import DeviceState, Feature
from nvmuser.errors import DeviceError, UsageError
from nvmuser.pci import Server

BAR_MEMORY = 0x1000
INTX = 0


class Movable(Everything):
    def save(self) -> bytes:
        return bytes(self.store)

    def load(self, data: bytes) -> None:
        if len(data) != len(self.store):
            raise UsageError("another device's")
        self.store[:] = data


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[tuple[Movable, Client], tuple[Movable, Client]]]:
    here, there = Movable(), Movable()
    async with Server(here, tmp_path / "a"), Server(there, tmp_path / "b"):
        clients = [await off_loop(connect, tmp_path / name) for name in "ab"]
        yield (here, clients[0]), (there, clients[1])
        for client in clients:
            client.close()


async def state_of(client: Client) -> bytes:
    qemu = Qemu(client)
    for state in (DeviceState.STOP, DeviceState.STOP_COPY):
        await off_loop(qemu.enter, state)
    return await off_loop(qemu.read_all)


async def test_it_is_the_same_there(pair: tuple[tuple[Movable, Client], tuple[Movable, Client]]) -> None:
    (here, source), (there, destination) = pair
    await off_loop(source.write, 4, 4, 0x1234, 2)
    await off_loop(source.write, BAR_MEMORY + 8, 8, 0x5678)
    with eventfd() as heard_here, eventfd() as line, memory(1 << 20) as held:
        await off_loop(source.interrupts, [heard_here], 0)
        here.set_intx(True)
        assert signals(heard_here) == 1
        data = await state_of(source)
        await off_loop(destination.map, 0, 1 << 20, held)
        qemu = Qemu(destination)
        await off_loop(qemu.enter, DeviceState.RESUMING)
        await off_loop(destination.interrupts, [line], INTX)
        await off_loop(qemu.write_all, data)
        assert signals(line) == 0, "its guest stands still"
        with pytest.raises(DeviceError) as caught:
            there.memory.write(0, b"x")
        assert caught.value.errno == errno.EBUSY
        await off_loop(qemu.enter, DeviceState.STOP)
        await off_loop(qemu.enter, DeviceState.RUNNING)
        assert signals(line) == 1, "the line is still asserted"
        assert await off_loop(destination.read, 4, 4, 2) == 0x1234
        assert await off_loop(destination.read, BAR_MEMORY + 8, 8) == 0x5678
        there.memory.write(0, b"x")


async def test_what_it_triggers_while_the_guest_stands_still(
    pair: tuple[tuple[Movable, Client], tuple[Movable, Client]],
) -> None:
    (here, source), _ = pair
    with eventfd() as heard:
        await off_loop(source.interrupts, [heard], 2)
        await off_loop(Qemu(source).enter, DeviceState.STOP)
        assert here.trigger(0)
        assert signals(heard) == 0
        await off_loop(Qemu(source).enter, DeviceState.RUNNING)
        assert signals(heard) == 1


async def test_pages_that_it_writes_are_logged(pair: tuple[tuple[Movable, Client], tuple[Movable, Client]]) -> None:
    (here, source), _ = pair
    with memory(1 << 20) as held:
        await off_loop(source.map, 0, 1 << 20, held)
        qemu = Qemu(source)
        await off_loop(qemu.start_logging)
        here.memory.write(5 << 12, b"written")
        with here.memory.mapped(9 << 12, 8, write=True) as (view,):
            view[:3] = b"too"
            del view
        assert await off_loop(dirty, source) == {5, 9}
        assert await off_loop(dirty, source) == set()
        await off_loop(qemu.stop_logging)


def dirty(client: Client) -> set[int]:
    request = DeviceFeature(8 + 24 + 32, Feature.DMA_LOGGING_REPORT | wire.GET, wire.LoggingReport(0, 1 << 20).pack())
    data = DeviceFeature.unpack(client.call(Command.DEVICE_FEATURE, request.pack())).data
    bits = int.from_bytes(wire.LoggingReport.unpack(data, most=1 << 20).bitmap, "little")
    return {bit for bit in range(bits.bit_length()) if bits >> bit & 1}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"another" + data,
        lambda data: data + b"more",
        lambda data: data[:8] + b"\2" + data[9:],
        lambda data: data[:20] + (1).to_bytes(4, "little") + data[24:-255],
    ],
    ids=["beginning", "end", "interrupt", "own"],
)
async def test_a_state_that_is_none(pair: tuple[tuple[Movable, Client], tuple[Movable, Client]], spoil: object) -> None:
    assert callable(spoil)
    (_, source), (there, destination) = pair
    before = bytes(there.store)
    await off_loop(source.write, 4, 4, 0x1234, 2)
    data = spoil(await state_of(source))
    await off_loop(Qemu(destination).enter, DeviceState.RESUMING)
    with pytest.raises(Refusal):
        await off_loop(Qemu(destination).write_all, data, len(data))
    assert bytes(there.store) == before


async def test_a_device_that_does_not_say_how(device: Everything, client: Client) -> None:
    with pytest.raises(Refusal):
        await off_loop(Qemu(client).feature, Feature.MIGRATION, wire.GET)
    body = RegionAccess(0, 2, 4).pack()
    assert await off_loop(client.call, Command.REGION_READ, body)
