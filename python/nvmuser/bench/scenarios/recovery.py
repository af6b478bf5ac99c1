"""Kills of processes under a guest that writes and verifies, and what the guest saw.

Owns a deployment and a guest. What is killed are processes of that deployment,
which it started. The stall of a round is the longest that one I/O of fio took; fio's
verification, the guest's boot id and fsck show what survives.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from nvmuser.bench.measure import runner, stats
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.fio import Job
from nvmuser.bench.measure.fio_output import Estimate
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.bench.scenarios.shared_volumes import FileKind, Kind
from nvmuser.bench.scenarios.verified import (
    FILE,
    MEMORY,
    Seen,
    backing,
    check_disk,
    counted,
    format_disk,
    longest_io,
    summary,
)
from nvmuser.errors import GuestError, RpcError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.toolchain import accelerator

Kill = Literal["target", "endpoint", "both"]

_DELAY = (0.1, 1.5)
"""Seconds between fio's first estimate and the kill, at random: at any point of a write or a flush."""
_ROUND_LIMIT = 240.0
_CLOCK_S = 0.1
_OVERHEAD_RUNTIME = 4.0
_PAIR = ("through", "direct")


@dataclass(frozen=True)
class RecoveryPlan:
    """Which processes are killed, how often, and under what.

    :param outage: seconds for which no new target is started after a kill.
    :param overhead: rounds in which the endpoint's throughput is compared with `--direct`; 0 leaves that out.
    :param size: of what is written and verified in a round, in fio's words.
    :param rate: at most so much of it a second, for fio's `rate`, so that it is not over before the kill; empty: no
        limit.
    """

    kill: Kill = "target"
    rounds: int = 5
    standby: bool = False
    outage: float = 0.0
    overhead: int = 0
    queues: int = 1
    size: str = "128M"
    rate: str = ""


@dataclass
class RecoveryOutcome(Seen):
    """What the guest saw. Times in seconds."""

    stalls: list[float] = field(default_factory=list)
    first_io: list[float] = field(default_factory=list)
    startups: list[float] = field(default_factory=list)
    jumps: int = 0
    """Rounds whose times are not known, since the guest's clock has jumped. They are done again."""
    messages_per_io: float | None = None
    ratio: stats.Interval | None = None

    def to_json(self, plan: RecoveryPlan) -> dict[str, Any]:
        """What was done, and what the guest saw; times in seconds."""
        document: dict[str, Any] = {
            "kill": plan.kill,
            "standby": plan.standby,
            "outage_s": plan.outage,
            "rounds": len(self.stalls),
            **self.facts(),
            "stall_s": summary(self.stalls),
            "first_io_s": summary(self.first_io),
            "target_startup_s": median(self.startups) if self.startups else None,
            "messages_per_io": self.messages_per_io,
            "clock_jumps": self.jumps,
            "accelerator": accelerator(),
        }
        if self.ratio:
            document["throughput_ratio"] = self.ratio.median
            document["throughput_ratio_ci"] = [self.ratio.low, self.ratio.high]
        return document


async def measure(plan: RecoveryPlan, progress: Progress, kind: Kind | None = None) -> RecoveryOutcome:
    """Run the whole of it.

    :param progress: gets each step as it begins.
    :param kind: of the volume that is written; None: a file.
    :raises GuestError: the guest does not boot, or fio cannot run. I/O errors and wrong blocks are in the
    outcome.
    """
    outcome, kind = RecoveryOutcome(), kind or FileKind()
    # UNIX sockets live in it, and their paths end at 107 bytes.
    with scratch("nvmuser-") as root:
        progress.step("starting the target")
        await kind.declare(StateDir(root / "state"))
        async with Deployment.start(root / "state", standby=plan.standby) as deployment:
            if plan.overhead:
                await _overhead(plan, deployment, root, outcome, progress)
            socket = await kind.disk(deployment, root)
            progress.step("booting a guest")
            try:
                spec = GuestSpec(cpus=plan.queues, memory=MEMORY, sockets=(socket,))
                async with launch(spec, root / "guest") as guest:
                    await _rounds(plan, guest, deployment, outcome, progress)
            finally:
                await kind.remove(deployment)
    return outcome


async def _rounds(
    plan: RecoveryPlan, guest: Guest, deployment: Deployment, outcome: RecoveryOutcome, progress: Progress
) -> None:
    await format_disk(guest)
    await _undisturbed(plan, guest, deployment, outcome, progress)
    while (number := len(outcome.stalls)) < plan.rounds:
        last = f"; the last stalled {outcome.stalls[-1]:.2f} s" if outcome.stalls else ""
        progress.step(f"round {number + 1} of {plan.rounds}: writing, killing {plan.kill}, verifying{last}")
        await _round(plan, guest, deployment, outcome)
        if outcome.jumps > plan.rounds:
            raise GuestError("the guest's clock jumps: nothing can be measured by it")
    outcome.boots.add(guest.boot_id)
    outcome.fsck_clean = await check_disk(guest)


def _job(plan: RecoveryPlan) -> Job:
    extra = (("fsync", "64"), ("fallocate", "none"), *((("rate", f",{plan.rate}"),) if plan.rate else ()))
    return Job("verify", "randwrite", iodepth=32, size=plan.size, verify="crc32c", extra=extra)


async def _undisturbed(
    plan: RecoveryPlan, guest: Guest, deployment: Deployment, outcome: RecoveryOutcome, progress: Progress
) -> None:
    """One round without a kill: lays the file out, and counts messages."""
    progress.step("writing and verifying undisturbed")
    before = await _session(deployment)
    run = await runner.run(guest, _job(plan).workload(), [FILE], limit=_ROUND_LIMIT)
    counted(run, outcome)
    after = await _session(deployment)
    ios = sum(direction.total_ios for direction in run.jobs[0].directions.values())
    outcome.messages_per_io = (after["messages"] - before["messages"]) / max(ios, 1)
    outcome.boots.add(guest.boot_id)


async def _round(plan: RecoveryPlan, guest: Guest, deployment: Deployment, outcome: RecoveryOutcome) -> None:
    writing = asyncio.Event()
    begin = time.monotonic(), await _uptime(guest)

    def begun(_name: str, _estimate: Estimate) -> None:
        writing.set()

    workload = _job(plan).workload()
    limit = _ROUND_LIMIT + 2 * plan.outage
    work = asyncio.create_task(runner.run(guest, workload, [FILE], on_estimate=begun, limit=limit))
    try:
        await writing.wait()
        await asyncio.sleep(random.uniform(*_DELAY))
        if plan.outage:
            await deployment.control.call("hold", {"seconds": plan.outage})
        outcome.first_io.append(await _strike(plan, deployment))
        run = await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    counted(run, outcome)
    # Read within the time that passed here: more has not passed there, unless the guest's clock, by which fio measures,
    # has jumped, as it may under emulation on a busy host.
    if await _uptime(guest) - begin[1] > time.monotonic() - begin[0] + _CLOCK_S:
        outcome.jumps += 1
        return
    outcome.stalls.append(longest_io(run))
    startup = (await deployment.control.call("status"))["target"]["startup_s"]
    outcome.startups.append(startup)
    outcome.boots.add(guest.boot_id)


async def _uptime(guest: Guest) -> float:
    return float((await guest.run("cat /proc/uptime", check=True)).stdout.split()[0])


async def _strike(plan: RecoveryPlan, deployment: Deployment) -> float:
    """SIGKILL. Returns the seconds until a target has completed an I/O again."""
    status = await deployment.control.call("status")
    victims = {"target": ["target"], "endpoint": ["endpoint"], "both": ["target", "endpoint"]}[plan.kill]
    old = status["target"]["pid"]
    for victim in victims:
        os.kill(status[victim]["pid"], signal.SIGKILL)
    struck = time.monotonic()
    async with asyncio.timeout(_ROUND_LIMIT + plan.outage):
        while True:
            status = await deployment.control.call("status")
            if status["target"]["ready"] and status["target"]["pid"] != old and await _has_served(deployment):
                return time.monotonic() - struck
            await asyncio.sleep(0.02)


async def _has_served(deployment: Deployment) -> bool:
    """Whether the target has completed an I/O: the guest's volume is its only one, whatever it is called in SPDK."""
    try:
        async with await Client.connect(deployment.state.rpc_socket) as rpc:
            facts = await rpc.call("bdev_get_iostat")
    except RpcError:
        return False
    return any(bdev["num_write_ops"] or bdev["num_read_ops"] for bdev in facts["bdevs"])


async def _session(deployment: Deployment) -> dict[str, Any]:
    status = await deployment.control.call("status")
    sessions: dict[str, dict[str, Any]] = {session["controller"]: session for session in status["guests"]}
    return sessions["survivor"]


async def _overhead(
    plan: RecoveryPlan, deployment: Deployment, root: Path, outcome: RecoveryOutcome, progress: Progress
) -> None:
    """Throughput through the endpoint and past it, in alternating rounds.

    In a guest of its own, before anything is killed: what goes past the endpoint does not survive.
    """
    sockets = [await deployment.disk(name, backing(root / name), direct=name == "direct") for name in _PAIR]
    progress.step("booting a guest for the overhead")
    job = Job("overhead", "randwrite", iodepth=32, runtime=_OVERHEAD_RUNTIME, ramp=0.5).workload()
    async with launch(GuestSpec(cpus=plan.queues, memory=MEMORY, sockets=tuple(sockets)), root / "overhead") as guest:

        def measured(device: str) -> Callable[[int], Awaitable[float]]:
            async def iops(_round: int) -> float:
                run = await runner.run(guest, job, [device])
                if run.jobs[0].wrong:
                    raise GuestError(f"{device}: {run.jobs[0].wrong}")
                return run.jobs[0].iops

            return iops

        devices = {name: measured(f"/dev/nvme{index}n1") for index, name in enumerate(_PAIR)}
        values = await alternate(devices, plan.overhead, progress, what="overhead, ")
    for name in _PAIR:
        await deployment.forget(name)
    outcome.ratio = stats.ratio(values["through"], values["direct"])
