"""The calls that make volumes and controllers for an NVMe host to connect to."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bare_target import BareTarget

from nvmuser.rpc import Client, methods
from nvmuser.rpc.methods import Request

MIB = 1 << 20
EUI64 = "0F2D9A525A3E4A9A"
SLOW_US = 30_000_000
"""Longer than any test waits: only an abort ends it."""


def rpc(target: BareTarget, *requests: Request) -> None:
    async def call() -> None:
        async with await Client.connect(target.rpc_socket) as client:
            for request in requests:
                await client.call(request.method, dict(request.params))

    asyncio.run(call())


def uuid(number: int) -> str:
    return f"0f2d9a52-5a3e-4a9a-9a3f-1c5a35f5a00{number}"


def nguid(number: int) -> str:
    return uuid(number).replace("-", "")


def slow_volume() -> list[Request]:
    null = methods.null_create("base", 16 * MIB, 512, uuid(8))
    return [null, methods.delay_create("slow", "base", SLOW_US, uuid(9))]


def controller(directory: Path, name: str, *bdevs: str) -> list[Request]:
    """The calls that make a controller with these namespaces, and its directory."""
    (directory / name).mkdir()
    nqn = f"nqn.2026-11.org.nvmuser:{name}"
    return [
        methods.create_subsystem(nqn, name.upper(), 1, 8),
        *(
            methods.add_namespace(nqn, n, bdev, uuid=uuid(n), nguid=nguid(n), eui64=EUI64)
            for n, bdev in enumerate(bdevs, 1)
        ),
        methods.add_listener(nqn, str(directory / name)),
    ]
