"""Hostile clients at a device in Python: each harms its own connection at most, and the device beside it not at all."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from hostile import attack, bounded, kinds, messages
from hypothesis import given
from hypothesis import strategies as st
from vfio_fds import descriptors_open, until
from vfio_guest import Client

from nvmuser.errors import DeviceError
from nvmuser.pci import Area, Bar, Identity, MsiX, PciDevice, PciExpress, PowerManagement, Server, Vendor

SECONDS = 12.0


class Trusting(PciDevice):
    """It does with guest memory and interrupts whatever it is told."""

    identity = Identity(0x1234, 0x5678)
    bars = (Bar(0, 0x4000, mappable=(Area(0x1000, 0x1000),)), Bar(2, 1 << 20))
    capabilities = (PowerManagement(), MsiX(8, table_bar=2), PciExpress(), Vendor(b"nvmuser", read_only=False))
    intx = True

    def read(self, bar: int, offset: int, size: int) -> int:
        return offset

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.trigger(value % 8)
        self.set_intx(bool(value & 1))
        for region in self.memory.regions:
            length = min(region.size, 64)
            try:
                self.memory.write(region.address, bytes(length))
                self.memory.read(region.end - length, length)
            except DeviceError:
                continue


async def test_hostile_messages(tmp_path: Path) -> None:
    end = time.monotonic() + SECONDS
    evil, good = tmp_path / "evil.sock", tmp_path / "good.sock"
    async with Server(Trusting(), evil), Server(Trusting(), good):
        neighbour = Client(good, timeout=5.0)
        await asyncio.to_thread(neighbour.hello)
        await asyncio.to_thread(attack, evil, tmp_path, [])
        before = descriptors_open()

        @bounded
        @given(script=st.lists(st.tuples(messages, kinds), max_size=8), hello=st.booleans())
        def run(script: list[tuple[bytes, list[str]]], hello: bool) -> None:
            if time.monotonic() < end:
                attack(evil, tmp_path, script, hello=hello)
                assert neighbour.read(0x10, 4) == 0x10

        await asyncio.to_thread(run)
        await until(lambda: descriptors_open() == before)
        neighbour.close()
