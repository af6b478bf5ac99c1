"""A guest with two disks of a deployment, and what may happen to the processes under it.

Shared by the modules that kill them: each has one deployment and one guest, and every test must leave both as it found
them. That is the point.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure import runner
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.fio import Job
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.rpc import Client
from nvmuser.supervisor import daemon
from nvmuser.supervisor.spdk import Options

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
        await self.until(lambda now: all(g["recoveries"] > count[g["controller"]] for g in both(now)))

    async def replace_supervisor(self, options: Options | None = None) -> None:
        """SIGKILL for the supervisor, and another that takes over.

        :param options: what `target start` is given; nothing if None.
        """
        state = self.deployment.state
        process = self.deployment.control.hold_peer()
        process.signal(signal.SIGKILL)
        # It holds the state directory until it has ended.
        await process.ended.wait()
        process.close()
        await self.deployment.control.aclose()
        await asyncio.to_thread(daemon.start, state, options or Options())
        self.deployment.control = await Client.connect(state.control_socket, timeout=60)

    async def survives(self, strike: Callable[[], Awaitable[None]], others: tuple[Guest, ...] = ()) -> None:
        """Write on both disks at depth 32 (and on the first of each other guest), strike in the middle, read back: no
        error, no wrong block, the same boots."""
        await verifying({self.guest: ":".join(DEVICES)} | dict.fromkeys(others, DEVICES[0]), strike)
        assert self.guest.boot_id == self.boot_id


async def verifying(guests: dict[Guest, str], strike: Callable[[], Awaitable[None]]) -> None:
    """Write in guests, each on its devices (with colons between them), as `World.survives` does."""
    boots = [guest.boot_id for guest in guests]
    started = [asyncio.Event() for _ in guests]
    # Not faster than this, or it could be over before its first word.
    pace = (("rate", ",8m"),)
    job = Job("verify", "randwrite", iodepth=32, size="32M", io_size="24M", verify="crc32c", extra=pace).workload()
    work = asyncio.gather(
        *(
            runner.run(guest, job, [devices], on_estimate=lambda _name, _estimate, here=event: here.set(), limit=200)
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


def both(status: dict[str, Any]) -> list[dict[str, Any]]:
    guests = [one for one in status["guests"] if one["controller"] in DISKS]
    return guests if len(guests) == len(DISKS) else [{"controller": "one", "recoveries": -1, "phase": "gone"}]


@contextlib.asynccontextmanager
async def started(root: Path) -> AsyncIterator[World]:
    """A deployment in `root`/s and a guest on its two disks, backed by files in `root`."""
    async with Deployment.start(root / "s") as deployment:
        sockets = [await deployment.disk(name, sparse(root / name)) for name in DISKS]
        spec = GuestSpec(cpus=2, memory=512 * MIB, sockets=tuple(sockets))
        async with launch(spec, root / "guest") as guest:
            yield World(deployment, guest, guest.boot_id)
            # It may be another than the one that the deployment closes: see `test_supervisor_killed`.
            await deployment.control.aclose()


def sparse(path: Path) -> Path:
    """A backing file of 64 MiB."""
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path


def kill(status: dict[str, Any], *victims: str) -> None:
    """SIGKILL for the deployment's `target`, `endpoint` or both."""
    for victim in victims:
        os.kill(status[victim]["pid"], signal.SIGKILL)
