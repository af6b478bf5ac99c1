"""A guest on its disks while the machine under it is short of something, or changes: broken disks, slow ones,
another SPDK, firmware that finds no target.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from smalldisk import fill, small_disk
from throttle import bytes_written, throttled
from world import DEVICES, DISKS, World, both, kill, sparse, started

from nvmuser.errors import SetupError
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.toolchain import find_spdk

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    root = tmp_path_factory.mktemp("o")
    async with started(root) as world:
        yield world


async def test_a_full_or_broken_backing_is_an_error_for_that_io_alone(world: World, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m"):
        backing = sparse(tmp_path / "small/full")
        socket = await world.deployment.disk("full", backing, thin=True)
        before = await world.status()
        async with launch(GuestSpec(memory=384 * MIB, sockets=(socket,)), tmp_path / "third") as third:

            async def dd(arguments: str) -> int:
                return (await third.run(f"dd bs=1M {arguments}", timeout=60)).status

            fill(backing.parent / "filler")
            assert await dd("if=/dev/urandom of=/dev/nvme0n1 count=16 oflag=direct") != 0
            assert await dd("if=/dev/nvme0n1 of=/dev/null count=4 iflag=direct") == 0
            # What lies beyond the end of a file cannot be read: the kernel's asynchronous I/O tells SPDK so.
            os.truncate(backing, 4 * MIB)
            assert await dd("if=/dev/nvme0n1 of=/dev/null skip=32 count=1 iflag=direct") != 0
            assert await dd("if=/dev/nvme0n1 of=/dev/null count=4 iflag=direct") == 0
        after = await world.status()
        assert after["target"]["pid"] == before["target"]["pid"]
        await world.deployment.forget("full")

    async def nothing() -> None:
        return

    await world.survives(nothing)


async def test_a_slow_disk_keeps_a_dead_target_and_its_guest_waits(world: World) -> None:
    """Nothing of the dead target may land after the guest goes on: every block would not be right."""
    with throttled(world.deployment.state.root.parent, MIB // 4) as group:

        async def strike() -> None:
            before = await world.status()
            target = before["target"]["pid"]
            pidfd = os.pidfd_open(target)
            (group / "cgroup.procs").write_text(str(target))
            # By then the queues, of 256 KiB together, are full of slow writes.
            full = bytes_written(target) + MIB // 8
            await world.until(lambda _now: bytes_written(target) > full)
            kill(before, "target")
            early, _, _ = await asyncio.to_thread(select.select, [pidfd], [], [], 0.2)
            os.close(pidfd)
            assert not early, "nothing was in flight, so that this shows nothing"
            await world.recovered(before)

        await world.survives(strike)


async def test_another_spdk_takes_over_and_is_kept(world: World, tmp_path: Path) -> None:
    own = find_spdk().prefix
    other = tmp_path / "spdk"
    await asyncio.to_thread(shutil.copytree, own, other, symlinks=True)

    async def program() -> str:
        return os.readlink(f"/proc/{(await world.status())['target']['pid']}/exe")

    async def strike() -> None:
        before = await world.status()
        await world.deployment.control.call("upgrade", {"prefix": str(other)}, timeout=60)
        await world.recovered(before)
        assert (await program()).startswith(f"{other}/")
        assert world.deployment.state.spdk.readlink() == other
        before = await world.status()
        kill(before, "target")
        await world.recovered(before)
        assert (await program()).startswith(f"{other}/")

    await world.survives(strike)
    await world.deployment.control.call("upgrade", {"prefix": str(own)}, timeout=60)
    assert not world.deployment.state.spdk.is_symlink()
    with pytest.raises(SetupError, match="no bin/nvmf_tgt"):
        await world.deployment.control.call("upgrade", {"prefix": str(tmp_path)}, timeout=60)


@pytest.mark.parametrize("when", ["without a target", "in its own I/O"])
async def test_a_guest_caught_in_firmware_comes_back_by_a_reset(world: World, when: str) -> None:
    guest = world.guest

    async def contents() -> set[bytes]:
        """Of both disks; which of them Linux calls the first is not the same at each boot."""
        sums = [await guest.run(f"head -c 1048576 {device} | md5sum", timeout=60, check=True) for device in DEVICES]
        return {one.stdout for one in sums}

    for number, device in enumerate(DEVICES):
        fill_it = f"yes '{when} {number}' | head -c 1048576 | dd of={device} bs=1M iflag=fullblock oflag=direct"
        await guest.run(fill_it, timeout=60, check=True)
    written = await contents()
    assert len(written) == len(DEVICES)
    before = await world.status()
    if when == "without a target":
        await world.deployment.control.call("hold", {"seconds": 4})
        kill(before, "target")
        await guest.qmp.execute("system_reset")
    else:
        await guest.qmp.execute("system_reset")
        # Firmware has found the controller, and talks to it: each of its commands is some messages.
        count = {one["controller"]: one["messages"] for one in before["guests"]}
        await world.until(lambda now: any(g["messages"] > count[g["controller"]] + 100 for g in both(now)))
        kill(before, "target")
    await world.until(lambda now: now["target"]["ready"] and now["target"]["pid"] != before["target"]["pid"])
    world.boot_id = await guest.reset()
    assert await contents() == written
    assert len(both(await world.status())) == len(DISKS)


async def test_eight_queues(world: World, tmp_path: Path) -> None:
    socket = await world.deployment.disk("eight", sparse(tmp_path / "eight"))

    async def strike() -> None:
        before = await world.status()
        kill(before, "target")
        await world.recovered(before)

    async with launch(GuestSpec(cpus=8, memory=512 * MIB, sockets=(socket,)), tmp_path / "guest") as guest:
        queues = await guest.run("ls -d /sys/block/nvme0*n1/mq/* | wc -l", check=True)
        assert int(queues.stdout) == 8
        await world.survives(strike, (guest,))
