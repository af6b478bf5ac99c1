"""Devices in Python in a real guest: the samples under Linux's own drivers, and a device of memory and messages."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
from asyncio.subprocess import Process as Program
from pathlib import Path
from typing import Any

from board import EVENTUALLY, SAMPLES, WATCH_ALL, ok, sample
from guests import VERIFY, fio_errors

from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.pci import Area, Bar, Identity, Msi, MsiX, PciDevice, PciExpress, PowerManagement, Server

BOARD = "$(dirname $(grep -l 0x0dc8 /sys/bus/pci/devices/*/device))"
# The driver has named its interrupt after itself, and later after the device.
INTERRUPTS = (
    f"name=$(basename {BOARD}); "
    "awk -v name=$name 'index($0, name) || /idio/ {n += $2} END {print n + 0}' /proc/interrupts"
)
PLACE = "$(dirname $(grep -l 0xfffe /sys/bus/pci/devices/*/device))"


class Memory(PciDevice):
    """A BAR that a guest maps in part, and every capability."""

    identity = Identity(0x494F, 0xFFFE, revision=3)
    bars = (Bar(0, 0x4000, wide=True, mappable=(Area(0x1000, 0x1000),)), Bar(2, 0x1000))
    capabilities = (PowerManagement(), Msi(2), MsiX(4, table_bar=2), PciExpress())

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, bar: int, offset: int, size: int) -> int:
        return 0x1000 * bar + offset

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.written.append((bar, offset, value))


def attached(path: Path) -> tuple[str, str]:
    return "-device", json.dumps({"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}})


async def said(board: Program, text: str) -> None:
    """Skip what firmware and driver did before."""
    assert board.stdout is not None
    async with asyncio.timeout(20):
        while (line := await board.stdout.readline()) != f"{text}\n".encode():
            assert line, "the sample ended"


async def test_linux_drives_the_board_and_maps_memory(tmp_path: Path) -> None:
    paths = (tmp_path / "gpio.sock", tmp_path / "memory.sock")
    devices = tuple(word for path in paths for word in attached(path))
    spec = GuestSpec(memory=512 * MIB, spare_ports=0, qemu_args=devices)
    async with (
        sample(paths[0]) as board,
        Server(memory := Memory(), paths[1]),
        launch(spec, tmp_path / "guest") as guest,
    ):
        assert "(32 lines)" in await ok(guest, "gpiodetect")
        assert (await ok(guest, f"readlink {BOARD}/driver/module")).endswith("/gpio_pci_idio_16\n")
        await drive_outputs(guest, board)
        await watch_inputs(guest, board)
        await use_memory(guest, memory)


async def drive_outputs(guest: Guest, board: Program) -> None:
    await ok(guest, "gpioset -t0 -c gpiochip0 3=1 12=1")
    await said(board, "output 3 on")
    await said(board, "output 12 on")
    assert await ok(guest, "gpioget -c gpiochip0 --numeric --as-is 2 3 12") == "0 1 1\n"
    await ok(guest, "gpioset -t0 -c gpiochip0 OUT3=0")
    await said(board, "output 3 off")


async def watch_inputs(guest: Guest, board: Program) -> None:
    assert board.stdin is not None
    assert await ok(guest, "gpioget -c gpiochip0 --numeric IIN5 IIN9") == "0 0\n"
    board.stdin.write(b"5 on\n9 on\n5 off\n")
    await ok(guest, EVENTUALLY.format(condition='[ "$(gpioget -c gpiochip0 --numeric IIN5 IIN9)" = "0 1" ]'))
    await ok(guest, WATCH_ALL)
    for change, edge in (("on", "rising"), ("off", "falling")):
        async with guest.stream("exec gpiomon -c gpiochip0 -n1 --format '%E %o' 22") as monitor, asyncio.timeout(60):
            await ok(guest, EVENTUALLY.format(condition="grep -q gpiomon /proc/interrupts"))
            board.stdin.write(f"6 {change}\n".encode())
            result = await monitor.collect()
        assert (result.status, result.stdout.decode()) == (0, f"{edge} 22\n"), result.stderr
    assert int(await ok(guest, INTERRUPTS)) >= 2


async def use_memory(guest: Guest, memory: Memory) -> None:
    assert await ok(guest, f"echo 1 >{PLACE}/enable; cat {PLACE}/revision") == "0x03\n"
    lines = (await ok(guest, f"cut -d' ' -f1 {PLACE}/resource")).split()
    bar0, bar2 = int(lines[0], 16), int(lines[2], 16)
    await ok(guest, f"devmem {bar0 + 0x1010:#x} 32 0xcafe")
    assert bytes(memory.bar_memory(0)[0x1010:0x1014]) == b"\xfe\xca\0\0"
    assert memory.written == [], "an area that the guest has mapped"
    memory.bar_memory(0)[0x1020] = 0x42
    assert await ok(guest, f"devmem {bar0 + 0x1020:#x} 32") == "0x00000042\n"
    assert await ok(guest, f"devmem {bar2 + 0x800:#x} 32") == "0x00002800\n"
    await ok(guest, f"devmem {bar0 + 0x20:#x} 16 7")
    assert memory.written == [(0, 0x20, 7)]


async def test_linux_drives_queues_in_its_memory(tmp_path: Path) -> None:
    """Two samples in one guest: a virtio device, and an NVMe controller over a file."""
    given = bytearray()

    def source(size: int) -> bytes:
        given.extend(data := os.urandom(size))
        return data

    with (tmp_path / "disk").open("w+b") as file:
        file.truncate(64 * MIB)
        random = runpy.run_path(str(SAMPLES / "virtio_rng.py"))["VirtioRng"](source)
        nvme = runpy.run_path(str(SAMPLES / "tiny_nvme.py"))["TinyNvme"](file.fileno())
        paths = (tmp_path / "rng.sock", tmp_path / "nvme.sock")
        devices = tuple(word for path in paths for word in attached(path))
        spec = GuestSpec(memory=512 * MIB, spare_ports=0, qemu_args=devices)
        async with (
            Server(random, paths[0]),
            Server(nvme, paths[1]),
            launch(spec, tmp_path / "guest") as guest,
        ):
            await read_random_numbers(guest, given)
            await verify_disk(guest, Path(file.name))
            await see_a_bad_block(guest, nvme)


async def read_random_numbers(guest: Guest, given: bytearray) -> None:
    assert await ok(guest, "cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0\n"
    got = bytes.fromhex(await ok(guest, "dd if=/dev/hwrng bs=64 count=64 2>/dev/null | od -An -v -tx1"))
    assert len(got) == 4096
    # The kernel's own pool has some of what was given.
    assert all(got[start : start + 8] in given for start in range(0, len(got), 8))
    assert int(await ok(guest, "awk '/-input/ {n += $2} END {print n + 0}' /proc/interrupts")) >= 64


async def verify_disk(guest: Guest, file: Path) -> None:
    """Linux's own driver, and fio's check of each block: single pages, PRP lists, unaligned beginnings of them."""
    assert (await ok(guest, "cat /sys/block/nvme0n1/device/model")).strip() == "tiny_nvme"
    assert await ok(guest, "cat /sys/block/nvme0n1/size") == f"{64 * MIB // 512}\n"
    assert fio_errors((await ok(guest, VERIFY.format(device="/dev/nvme0n1"))).encode()) == (0, 8 * MIB, 8 * MIB)
    large = VERIFY.format(device="/dev/nvme0n1").replace("--bs=4k", "--bs=512-128k --offset=16m")
    assert fio_errors((await ok(guest, large)).encode())[0] == 0
    await ok(guest, "printf 'written by a guest' | dd of=/dev/nvme0n1 bs=512 seek=99 conv=sync,fsync 2>/dev/null")
    with file.open("rb") as disk:
        disk.seek(99 * 512)
        assert disk.read(18) == b"written by a guest"
    assert "nvme0" not in await ok(guest, "dmesg | grep -iE 'nvme.*(timeout|error|reset|fail)' || true")
    assert int(await ok(guest, "awk '/nvme0q1/ {n += $2} END {print n + 0}' /proc/interrupts")) >= 64


async def see_a_bad_block(guest: Guest, nvme: Any) -> None:
    """A controller that is made faulty: one block cannot be read, and the guest gets an error for that one alone."""
    right = nvme.transfer

    def transfer(command: Any, first: int, blocks: int) -> int:
        return 0x281 if first <= 1000 < first + blocks else right(command, first, blocks)

    nvme.transfer = transfer
    read = "dd if=/dev/nvme0n1 of=/dev/null bs=512 iflag=direct count=1 skip={}"
    assert (await guest.run(read.format(1000))).status != 0
    await ok(guest, read.format(999))
    await ok(guest, read.format(1001))
    assert "critical medium error" in await ok(guest, "dmesg | grep 'sector 1000 '")
