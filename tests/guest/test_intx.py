"""A guest without MSI: its controller interrupts it by a line that is asserted until the guest has seen to it."""

from __future__ import annotations

import asyncio

import pytest
from guests import Boot, Target
from world import kill, sparse, verifying

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB

NO_MSI = "pci=nomsi"
DEVICE = "/dev/nvme0n1"


async def check(text: bytes) -> None:
    """No line was turned off, and nothing ran into a time-out."""
    assert b"nobody cared" not in text
    assert b"timeout" not in text


async def test_verified_writes_while_targets_are_killed(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("x")
    async with Deployment.start(root / "s") as deployment:
        socket = await deployment.disk("one", sparse(root / "one"))

        async def strike() -> None:
            before = await deployment.control.call("status")
            kill(before, "target")
            async with asyncio.timeout(60):
                while True:
                    now = (await deployment.control.call("status"))["guests"]
                    if now and now[0]["recoveries"] > before["guests"][0]["recoveries"]:
                        return

        spec = GuestSpec(memory=512 * MIB, sockets=(socket,), append=NO_MSI)
        async with launch(spec, root / "guest") as guest:
            lines = (await guest.run("grep nvme /proc/interrupts", timeout=30)).stdout
            assert b"IO-APIC" in lines
            assert b"MSI" not in lines
            for _ in range(2):
                await verifying({guest: DEVICE}, strike)
            await check((await guest.run("dmesg", timeout=30)).stdout)


async def test_without_the_endpoint(target: Target, boot: Boot) -> None:
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(await target.controller(),), append=NO_MSI))
    written = "fio --name=v --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1"
    await guest.run(f"{written} --size=8m --verify=crc32c --verify_fatal=1", timeout=200, check=True)
    await check((await guest.run("dmesg", timeout=30)).stdout)
