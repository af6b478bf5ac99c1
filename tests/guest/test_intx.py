"""A guest without MSI: its controller interrupts it by a line that is asserted until the guest has seen to it."""

from __future__ import annotations

import asyncio
import re

import pytest
from guests import Boot, Target
from world import DEVICES, DISKS, both, kill, sparse, verifying

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB

NO_MSI = "pci=nomsi"

AT_REST = 1000
"""Interrupts in a second in which nothing works with the disks, at most: udev may look at them. A line that stays
asserted makes some ten thousands."""


async def check(guest: Guest) -> None:
    """No line was turned off or stays asserted, and nothing ran into a time-out."""
    text = (await guest.run("dmesg", timeout=30)).stdout
    assert b"nobody cared" not in text
    assert b"timeout" not in text
    lines = "grep nvme /proc/interrupts"
    seen = (await guest.run(f"{lines}; sleep 1; {lines}", timeout=30, check=True)).stdout.decode()
    counts = [sum(map(int, re.findall(r"\s(\d+)(?=\s)", line))) for line in seen.splitlines()]
    before, after = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    assert all(end - start < AT_REST for start, end in zip(before, after, strict=True)), seen


async def test_verified_writes_while_targets_are_killed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two controllers, two processors: each controller has a line of its own."""
    root = tmp_path_factory.mktemp("x")
    async with Deployment.start(root / "s") as deployment:
        sockets = [await deployment.disk(name, sparse(root / name)) for name in DISKS]

        async def strike() -> None:
            before = await deployment.control.call("status")
            count = {guest["controller"]: guest["recoveries"] for guest in before["guests"]}
            kill(before, "target")
            async with asyncio.timeout(60):
                while True:
                    now = both(await deployment.control.call("status"))
                    if all(guest["recoveries"] > count[guest["controller"]] for guest in now):
                        return

        spec = GuestSpec(cpus=2, memory=512 * MIB, sockets=tuple(sockets), append=NO_MSI)
        async with launch(spec, root / "guest") as guest:
            lines = (await guest.run("grep nvme /proc/interrupts", timeout=30)).stdout
            assert lines.count(b"IO-APIC") == len(DISKS), lines
            assert b"MSI" not in lines
            for _ in range(3):
                await verifying({guest: ":".join(DEVICES)}, strike)
                await check(guest)


async def test_without_the_endpoint(target: Target, boot: Boot) -> None:
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(await target.controller(),), append=NO_MSI))
    written = "fio --name=v --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1"
    await guest.run(f"{written} --size=8m --verify=crc32c --verify_fatal=1", timeout=200, check=True)
    await check(guest)
