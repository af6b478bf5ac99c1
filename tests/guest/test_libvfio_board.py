"""libvfio on another server than SPDK: the sample board, which has an I/O BAR and INTx, under Linux's own driver."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import Process
from pathlib import Path

import pytest
from board import EVENTUALLY, WATCH_ALL, ok, sample
from guests import Boot
from qemus import QEMUS, the_qemu

from nvmf_vfio import vfio_dir
from nvmuser.guest import Guest, GuestSpec
from nvmuser.guest.spec import MIB
from nvmuser.toolchain import libvfio
from nvmuser.toolchain.steps import Reporter


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.matrix] if one != QEMUS[0] else []) for one in QEMUS]
)
async def test_linux_drives_the_board(name: str, boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not libvfio.is_done():
        libvfio.build(Reporter(tmp_path / "log"))
    qemu = the_qemu(name)
    monkeypatch.setattr("nvmuser.guest.machine.host.find_qemu", lambda _device: qemu)
    async with sample(tmp_path / "gpio.sock") as board:
        directory = vfio_dir.Devices(tmp_path / "vfio").assign(tmp_path / "gpio.sock")
        device = ("-device", json.dumps({"driver": "vfio-pci", "sysfsdev": str(directory)}))
        guest = await boot(GuestSpec(memory=512 * MIB, directories=(), spare_ports=0, qemu_args=device))
        assert "(32 lines)" in await ok(guest, "gpiodetect")
        await drive_outputs(guest, board)
        async with asyncio.timeout(60):
            await hear_inputs(guest, board)


async def drive_outputs(guest: Guest, board: Process) -> None:
    assert board.stdout is not None
    await ok(guest, "gpioset -t0 -c gpiochip0 3=1 12=1")
    assert await ok(guest, "gpioget -c gpiochip0 --numeric --as-is 2 3 12") == "0 1 1\n"
    async with asyncio.timeout(20):
        heard = {await board.stdout.readline() for _ in range(2)}
    assert heard == {b"output 3 on\n", b"output 12 on\n"}


async def hear_inputs(guest: Guest, board: Process) -> None:
    """Each change of an input is an interrupt."""
    assert board.stdin is not None
    await ok(guest, WATCH_ALL)
    for change, edge in (("on", "rising"), ("off", "falling")) * 2:
        async with guest.stream("exec gpiomon -c gpiochip0 -n1 --format '%E %o' 22") as monitor:
            await ok(guest, EVENTUALLY.format(condition="grep -q gpiomon /proc/interrupts"))
            board.stdin.write(f"6 {change}\n".encode())
            assert (await monitor.collect()).stdout == f"{edge} 22\n".encode()
