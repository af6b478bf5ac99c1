"""A guest on its disks while the processes under it die: real SPDK, real endpoint, real Linux driver.

One deployment and one guest with two controllers for the whole module: every test must leave both as it found them, and
that is the point.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nvmuser.bench import runner
from nvmuser.bench.deployment import Deployment
from nvmuser.bench.fio import Job
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.rpc import Client
from nvmuser.target import daemon
from nvmuser.target.spdk import Options

pytestmark = pytest.mark.asyncio(loop_scope="module")

GARBAGE = re.compile(r"process NVMe command opc|unsuccessful query for nsid")
DISKS = ("one", "two")
DEVICES = ("/dev/nvme0n1", "/dev/nvme1n1")


@dataclass
class World:
    """What the tests share."""

    deployment: Deployment
    guest: Guest
    boot_id: str

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = await self.deployment.control.call("status")
        return status

    async def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Look until something is so; a minute is too long for everything that is waited for here."""
        async with asyncio.timeout(60):
            while True:
                if true(status := await self.status()):
                    return status

    async def recovered(self, before: dict[str, Any]) -> None:
        """Both drivers work again after what happened since `before`."""
        count = {one["controller"]: one["recoveries"] for one in before["guests"]}
        await self.until(lambda now: all(g["recoveries"] > count[g["controller"]] for g in _both(now)))

    async def survives(self, strike: Callable[[], Awaitable[None]], others: tuple[Guest, ...] = ()) -> None:
        """Write on both disks at depth 32 (and on the first of each other guest), strike in the middle, read back: no
        error, no wrong block, the same boots."""
        guests = {self.guest: ":".join(DEVICES)} | dict.fromkeys(others, DEVICES[0])
        boots = [guest.boot_id for guest in guests]
        started = [asyncio.Event() for _ in guests]
        job = Job("verify", "randwrite", iodepth=32, size="32M", io_size="24M", verify="crc32c").workload()
        work = asyncio.gather(
            *(
                runner.run(guest, job, [devices], progress=lambda _name, _estimate, here=event: here.set(), limit=200)
                for (guest, devices), event in zip(guests.items(), started, strict=True)
            )
        )
        try:
            for event in started:
                await event.wait()
            await strike()
            runs = await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        assert [one.wrong for run in runs for one in run.jobs] == [None] * len(guests)
        assert [guest.boot_id for guest in guests] == boots
        assert self.guest.boot_id == self.boot_id


def _both(status: dict[str, Any]) -> list[dict[str, Any]]:
    guests = [one for one in status["guests"] if one["controller"] in DISKS]
    return guests if len(guests) == len(DISKS) else [{"controller": "one", "recoveries": -1, "phase": "gone"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    root = tmp_path_factory.mktemp("r")
    async with Deployment.start(root / "s") as deployment:
        sockets = []
        for name in DISKS:
            backing = root / name
            with backing.open("wb") as file:
                file.truncate(64 * MIB)
            sockets.append(await deployment.disk(name, backing))
        spec = GuestSpec(cpus=2, memory=512 * MIB, sockets=tuple(sockets))
        async with launch(spec, root / "guest") as guest:
            yield World(deployment, guest, guest.boot_id)
            # It may be another than the one that the deployment closes: see `test_supervisor_killed`.
            await deployment.control.aclose()


def _kill(status: dict[str, Any], *victims: str) -> None:
    for victim in victims:
        os.kill(status[victim]["pid"], signal.SIGKILL)


@pytest.mark.parametrize("victims", [("target",), ("endpoint",), ("target", "endpoint")], ids="+".join)
async def test_kill(world: World, victims: tuple[str, ...]) -> None:
    async def strike() -> None:
        before = await world.status()
        _kill(before, *victims)
        await world.recovered(before)

    await world.survives(strike)


async def test_kill_while_the_driver_sets_its_controller_up(world: World) -> None:
    async def strike() -> None:
        before = await world.status()
        _kill(before, "target")
        # LIVE again: the driver has begun to talk to the new target, and has not finished.
        again = await world.until(lambda now: any(one["phase"] == "live" for one in _both(now)) and _new(before, now))
        _kill(again, "target")
        await world.recovered(before)

    await world.survives(strike)


def _new(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether another target serves."""
    pid = now["target"]["pid"]
    return now["target"]["ready"] and pid not in (None, before["target"]["pid"])


async def test_restart_and_hold(world: World) -> None:
    async def strike() -> None:
        before = await world.status()
        await world.deployment.control.call("restart", timeout=60)
        await world.recovered(before)
        before = await world.status()
        await world.deployment.control.call("hold", {"seconds": 3})
        _kill(before, "target")
        await world.recovered(before)

    await world.survives(strike)


async def test_supervisor_killed(world: World) -> None:
    """Guests do not notice; the next supervisor takes both processes over, and brings them back when they die."""

    async def strike() -> None:
        state = world.deployment.state
        before = await world.status()
        pidfd = os.pidfd_open(int(state.lock.read_text()))
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        # It holds the state directory until it has ended.
        await asyncio.to_thread(select.select, [pidfd], [], [], 30)
        os.close(pidfd)
        await asyncio.to_thread(daemon.start, state, Options())
        world.deployment.control = await Client.connect(state.control_socket, timeout=60)
        after = await world.status()
        assert after["target"]["pid"] == before["target"]["pid"]
        assert after["endpoint"]["pid"] == before["endpoint"]["pid"]
        _kill(after, "endpoint")
        await world.recovered(after)

    await world.survives(strike)


async def test_driver_without_event_request_finds_the_failure(world: World) -> None:
    """`nvme reset` while there is no target: EN=0 is answered at once, RDY waits for the next target."""

    async def strike() -> None:
        before = await world.status()
        await world.deployment.control.call("hold", {"seconds": 2})
        _kill(before, "target")
        await world.until(lambda now: all(one["phase"] == "failed" for one in _both(now)))
        await world.guest.run("nvme reset /dev/nvme0", timeout=60)
        await world.recovered(before)

    await world.survives(strike)


async def test_two_guests_on_one_target(world: World, tmp_path: Path) -> None:
    backing = tmp_path / "three"
    with backing.open("wb") as file:
        file.truncate(64 * MIB)
    socket = await world.deployment.disk("three", backing)

    async def strike() -> None:
        before = await world.status()
        _kill(before, "target")
        await world.recovered(before)

    async with launch(GuestSpec(memory=384 * MIB, sockets=(socket,)), tmp_path / "second") as second:
        await world.survives(strike, (second,))


async def test_a_full_backing_is_an_error_for_that_io_alone(world: World, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = await asyncio.to_thread(subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=8m", "none", small])
    if mounted.returncode:
        pytest.skip("no file system of a given size can be mounted here")
    try:
        backing = small / "full"
        with backing.open("wb") as file:
            file.truncate(64 * MIB)
        socket = await world.deployment.disk("full", backing)
        before = await world.status()
        async with launch(GuestSpec(memory=384 * MIB, sockets=(socket,)), tmp_path / "third") as third:
            fill = "dd if=/dev/urandom of=/dev/nvme0n1 bs=1M count=16 oflag=direct"
            assert (await third.run(fill, timeout=60)).status != 0
            read = "dd if=/dev/nvme0n1 of=/dev/null bs=1M count=4 iflag=direct"
            assert (await third.run(read, timeout=60)).status == 0
        after = await world.status()
        assert after["target"]["pid"] == before["target"]["pid"]
        await world.deployment.forget("full")
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", small], check=True)

    async def nothing() -> None:
        return

    await world.survives(nothing)


async def test_the_logs_are_clean_after_all_that(world: World) -> None:
    kernel = (await world.guest.run("dmesg", timeout=30)).stdout
    assert b"identifiers changed" not in kernel
    assert b"I/O error" not in kernel
    assert "Traceback" not in (world.deployment.state.logs / "endpoint.log").read_text()
    target = (world.deployment.state.logs / "target.log").read_text(errors="replace")
    assert not [line for line in target.splitlines() if GARBAGE.search(line)]
