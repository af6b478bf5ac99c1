"""A guest that moves from one sample board to another: what it drives and what it hears is the same there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from board import EVENTUALLY, WATCH_ALL, sample

from nvmf_vfio import vfio_dir
from nvmuser.guest import GuestSpec, move
from nvmuser.guest.qmp import connected
from nvmuser.guest.registry import Registry
from nvmuser.guest.spec import MIB
from nvmuser.toolchain import libvfio
from nvmuser.toolchain.steps import Reporter

NAME = "g"


def spec(directory: Path) -> GuestSpec:
    device = ("-device", json.dumps({"driver": "vfio-pci", "sysfsdev": str(directory)}))
    return GuestSpec(memory=512 * MIB, directories=(), spare_ports=0, hugepages=False, qemu_args=device)


@asynccontextmanager
async def guests(root: Path) -> AsyncIterator[Registry]:
    registry = Registry(root)
    try:
        yield registry
    finally:
        for record in registry.list():
            await registry.discard(record.name)


async def ok(registry: Registry, command: str) -> str:
    async with registry.agent(NAME) as agent:
        return (await agent.run(command, check=True, timeout=60)).stdout.decode()


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # QEMU outlives who starts it
async def test_outputs_and_interrupt_come_along(tmp_path: Path) -> None:
    if not libvfio.is_done():
        libvfio.build(Reporter(tmp_path / "log"))
    devices = vfio_dir.Devices(tmp_path / "vfio")
    async with (
        sample(tmp_path / "a.sock"),
        sample(tmp_path / "b.sock") as board,
        guests(tmp_path / "a") as here,
        guests(tmp_path / "b") as there,
    ):
        await here.start(NAME, spec(devices.assign(tmp_path / "a.sock")))
        await there.start(NAME, spec(devices.assign(tmp_path / "b.sock")), incoming=True)
        await ok(here, "gpioset -t0 -c gpiochip0 3=1 12=1")
        await ok(here, WATCH_ALL)
        await ok(here, "gpiomon -c gpiochip0 -n1 --format '%E %o' 22 > /tmp/heard 2>&1 &")
        await ok(here, EVENTUALLY.format(condition="grep -q gpiomon /proc/interrupts"))
        async with connected(here.runtime(NAME).qmp) as source, connected(there.runtime(NAME).qmp) as destination:
            await move.move(source, destination, f"unix:{tmp_path / 'move'}")
        assert board.stdin is not None
        assert board.stdout is not None
        async with asyncio.timeout(20):
            assert {await board.stdout.readline() for _ in range(2)} == {b"output 3 on\n", b"output 12 on\n"}
        assert await ok(there, "gpioget -c gpiochip0 --numeric --as-is 2 3 12") == "0 1 1\n"
        board.stdin.write(b"6 on\n")
        await ok(there, EVENTUALLY.format(condition="[ -s /tmp/heard ]"))
        assert await ok(there, "cat /tmp/heard") == "rising 22\n"
