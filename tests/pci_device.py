"""A device in Python with all there is, and what a client of it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from vfio_guest import Client

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
    Reset,
    Space,
    Vendor,
)

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
    """Run a call of the blocking client in a thread, while the loop serves it."""
    return await asyncio.to_thread(call, *args, **kwargs)


def connect(path: Path) -> Client:
    client = Client(path)
    client.hello()
    return client


def config(client: Client, offset: int, size: int) -> int:
    return client.read(offset, size, CONFIG)


def capabilities(client: Client) -> dict[int, int]:
    """Where each lies, by its id."""
    found, at = {}, config(client, 0x34, 1)
    while at:
        found[config(client, at, 1)] = at
        at = config(client, at + 1, 1)
    return found
