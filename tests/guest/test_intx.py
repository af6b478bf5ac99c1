"""A guest without MSI: its controller interrupts it by a line that is asserted until the guest has seen to it."""

from __future__ import annotations

import asyncio

import pytest
from guests import Boot, Target
from world import DEVICES, DISKS, both, kill, sparse, verifying

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB

NO_MSI = "pci=nomsi"


async def check(text: bytes) -> None:
    """No line was turned off, and nothing ran into a time-out."""
    assert b"nobody cared" not in text
    assert b"timeout" not in text


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
            await check((await guest.run("dmesg", timeout=30)).stdout)


async def test_without_the_endpoint(target: Target, boot: Boot) -> None:
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(await target.controller(),), append=NO_MSI))
    written = "fio --name=v --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1"
    await guest.run(f"{written} --size=8m --verify=crc32c --verify_fatal=1", timeout=200, check=True)
    await check((await guest.run("dmesg", timeout=30)).stdout)
