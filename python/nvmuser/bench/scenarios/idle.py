"""What endpoints cost while nobody uses them: a busy neighbour's throughput, and CPU time by profile.

Owns one deployment and one guest for all of it. The guest is the load, as it is for people: its throughput alone and
beside idle endpoints is measured in turn, in one guest on one target. It stays connected while the target is restarted
with one profile after the other.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure import runner, stats
from nvmuser.bench.measure.cpu import process_seconds
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.fio import Job
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.errors import GuestError, TargetError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, TargetSettings, Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor import control
from nvmuser.toolchain import accelerator

_BUSY = "busy"
_BUSY_SIZE = 64 * MIB
_IDLE_SIZE = MIB
_JOB = Job("busy", "randread", iodepth=32, runtime=4.0, ramp=0.5)
_SETTLE_S = 3.0
"""SPDK's scheduler looks once a second, and needs two looks to send a core to sleep."""
_WATCH_S = 8.0


@dataclass(frozen=True)
class Idle:
    """What was measured. IOPS have one value for each round; CPU is in percent of one core."""

    endpoints: int
    alone: tuple[float, ...]
    beside: tuple[float, ...]
    target_percent: dict[str, float]
    endpoint_percent: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The ratio of a busy neighbour's throughput, and CPU by profile."""
        ratio = stats.ratio(self.beside, self.alone)
        return {
            "endpoints": self.endpoints,
            "rounds": len(self.alone),
            "busy_ratio": ratio.median,
            "busy_ratio_ci": [ratio.low, ratio.high],
            "busy_iops": {"alone": statistics.median(self.alone), "beside": statistics.median(self.beside)},
            "idle_cpu_percent": self.target_percent,
            "endpoint_idle_cpu_percent": self.endpoint_percent,
            "accelerator": accelerator(),
        }


async def measure(root: Path, endpoints: int, rounds: int, progress: Progress) -> Idle:
    """:param root: a short path, for sockets are in it; its owner removes it.

    :raises NvmuserError: the target or the guest does not do what is asked.
    """
    async with _guest(root, progress) as (deployment, guest):
        alone, beside = await _busy(deployment, guest, endpoints, rounds, progress)
        await _change(deployment.state, Change(create=_objects(endpoints)))
        target: dict[str, float] = {}
        endpoint: dict[str, float] = {}
        for profile in TargetSettings.profiles:
            progress.step(f"idle, profile {profile}")
            await _switch(deployment, profile)
            target[profile], endpoint[profile] = await _watched(deployment, guest)
    return Idle(endpoints, tuple(alone), tuple(beside), target, endpoint)


@asynccontextmanager
async def _guest(root: Path, progress: Progress) -> AsyncIterator[tuple[Deployment, Guest]]:
    progress.step("starting a target and a guest")
    async with Deployment.start(root / "s") as deployment:
        busy = (Volume(_BUSY, size=_BUSY_SIZE), Controller(_BUSY, (Namespace(_BUSY),)))
        await _change(deployment.state, Change(create=busy))
        spec = GuestSpec(memory=512 * MIB, sockets=(deployment.state.socket(_BUSY),))
        async with launch(spec, root / "g") as guest:
            # Blocks that were never written would be read without any I/O.
            await guest.run("dd if=/dev/urandom of=/dev/nvme0n1 bs=1M oflag=direct; sync", timeout=120.0)
            yield deployment, guest


async def _busy(
    deployment: Deployment, guest: Guest, endpoints: int, rounds: int, progress: Progress
) -> tuple[list[float], list[float]]:
    """IOPS of each round, alone and beside idle endpoints."""
    idle = _objects(endpoints)

    async def alone(_round: int) -> float:
        return await _iops(guest)

    async def beside(_round: int) -> float:
        await _change(deployment.state, Change(create=idle))
        iops = await _iops(guest)
        await _change(deployment.state, Change(delete=tuple(declared.key for declared in idle), wipe=True))
        return iops

    iops = await alternate({"alone": alone, "beside": beside}, rounds, progress, what="busy, ")
    return iops["alone"], iops["beside"]


def _objects(count: int) -> tuple[Volume | Controller, ...]:
    """Controllers that nobody connects to, each with a file volume."""
    volumes = [Volume(f"i{n}", size=_IDLE_SIZE) for n in range(count)]
    return (*volumes, *(Controller(volume.name, (Namespace(volume.name),)) for volume in volumes))


async def _change(state: StateDir, change: Change) -> None:
    outcome = await control.submit(state, change)
    if outcome.pending:
        raise TargetError("the target has ended during the measurement")


async def _iops(guest: Guest) -> float:
    run = await runner.run(guest, _JOB.workload(), ["/dev/nvme0n1"])
    if run.jobs[0].wrong:
        raise GuestError(f"fio: {run.jobs[0].wrong}")
    return run.jobs[0].iops


async def _switch(deployment: Deployment, profile: str) -> None:
    """Another process of the target, with this profile; the guest stays."""
    settings = TargetSettings(profile=profile)
    known = settings.key in control.load(deployment.state).entries
    await _change(deployment.state, Change(update=(settings,)) if known else Change(create=(settings,)))
    await deployment.control.call("restart")


async def _watched(deployment: Deployment, guest: Guest) -> tuple[float, float]:
    """CPU of the target and of the endpoint, in percent, while the guest is connected and does nothing."""
    await guest.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=64 iflag=direct", timeout=60.0, check=True)
    found = await deployment.processes()
    pids = (*found["target"], *found["endpoint"])
    await asyncio.sleep(_SETTLE_S)
    before = [process_seconds(pid) for pid in pids]
    await asyncio.sleep(_WATCH_S)
    first, second = (100 * (process_seconds(pid) - used) / _WATCH_S for pid, used in zip(pids, before, strict=True))
    return first, second
