"""Moves of a controller between two targets under a guest that writes and verifies, and what the guest saw; and what a
guest on one target sees of the other's deaths.

Owns a deployment with two targets and a guest with a disk on each. Stalls are the longest times of single I/Os: fio
logs the longest in each tenth of a second, and each move is one peak of that.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field, replace
from typing import Any

from nvmuser.bench.measure import runner
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.fio import LOG_PREFIX, Job
from nvmuser.bench.measure.fio_output import Estimate
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.scenarios.verified import (
    FILE,
    MEMORY,
    Seen,
    backing,
    check_disk,
    counted,
    format_disk,
    summary,
)
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.model.change import Change
from nvmuser.model.objects import TargetSettings
from nvmuser.paths import DEFAULT_TARGET
from nvmuser.supervisor import control
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import accelerator

_OTHER = "other"
_SURVIVOR, _NEIGHBOUR = "survivor", "neighbour"
_DEVICES = {_SURVIVOR: "/dev/nvme0n1", _NEIGHBOUR: "/dev/nvme1n1"}
_PER_RUN = 10
"""Moves in one run of fio."""
_APART = 1.0
"""Seconds from the end of one move to the next, at least: each is a peak of its own."""
_WINDOW_MS = 100
_LIMIT = 300.0


@dataclass(frozen=True)
class MovePlan:
    """How often, and how the targets are run.

    :param rounds: moves.
    :param kills: of the target that the neighbour is not on; 0 leaves that out.
    """

    rounds: int = 10
    kills: int = 0
    profile: str = "eco"


@dataclass
class MoveOutcome(Seen):
    """What the guest saw. Times in seconds."""

    stalls: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    """From the request to the answer."""
    before: list[float] = field(default_factory=list)
    """The neighbour's longest I/Os, each of one run, while nothing happens."""
    during: list[float] = field(default_factory=list)
    """While the other target is killed."""

    def to_json(self, plan: MovePlan) -> dict[str, Any]:
        """What was done, and what the guest saw; times in seconds."""
        document: dict[str, Any] = {
            "rounds": len(self.calls),
            "profile": plan.profile,
            **self.facts(),
            "stall_s": summary(self.stalls),
            "call_s": summary(self.calls),
            "accelerator": accelerator(),
        }
        if plan.kills:
            document["neighbour"] = {
                "kills": plan.kills,
                "longest_before_s": max(self.before, default=None),
                "longest_during_s": max(self.during, default=None),
                "longer_s": max(self.during) - max(self.before) if self.during and self.before else None,
            }
        return document


async def measure(plan: MovePlan, progress: Progress) -> MoveOutcome:
    """Run the whole of it.

    :param progress: gets each step as it begins.
    :raises GuestError: the guest does not boot, or fio cannot run. I/O errors and wrong blocks are in the outcome.
    """
    outcome = MoveOutcome()
    # UNIX sockets live in it, and their paths end at 107 bytes.
    with scratch("nvmuser-") as root:
        progress.step("starting two targets")
        async with Deployment.start(root / "state", Options(profile=plan.profile), standby=True) as deployment:
            await _change(deployment, Change(create=(TargetSettings(_OTHER, profile=plan.profile),)))
            sockets = [await deployment.disk(name, backing(root / name)) for name in _DEVICES]
            progress.step("booting a guest")
            async with launch(GuestSpec(cpus=2, memory=MEMORY, sockets=tuple(sockets)), root / "guest") as guest:
                await format_disk(guest)
                await _moves(plan, guest, deployment, outcome, progress)
                await _kills(plan, guest, deployment, outcome, progress)
                outcome.boots.add(guest.boot_id)
                outcome.fsck_clean = await check_disk(guest)
    return outcome


async def _change(deployment: Deployment, change: Change) -> None:
    await deployment.control.call("change", {"change": change.to_json()}, timeout=_LIMIT)


async def _moves(
    plan: MovePlan, guest: Guest, deployment: Deployment, outcome: MoveOutcome, progress: Progress
) -> None:
    left = plan.rounds
    while left:
        count = min(left, _PER_RUN)
        progress.step(f"{plan.rounds - left} of {plan.rounds} moves done: writing, moving, verifying")
        extra = (("fsync", "64"), ("fallocate", "none"), ("rate", ",6m"), *_peaks())
        size = f"{max(32, int(count * (_APART + 1.0) * 6))}m"
        job = Job("verify", "randwrite", iodepth=32, size=size, verify="crc32c", extra=extra)

        async def strike(count: int = count) -> None:
            for _ in range(count):
                await _move(deployment, outcome)

        run = await _with(guest, job, FILE, strike())
        counted(run, outcome)
        outcome.stalls += _longest(run, count)
        outcome.boots.add(guest.boot_id)
        left -= count


def _peaks() -> tuple[tuple[str, str], ...]:
    """The longest I/O of each window, instead of the mean."""
    return (("log_avg_msec", str(_WINDOW_MS)), ("log_max_value", "1"))


async def _with(guest: Guest, job: Job, device: str, strike: Any) -> runner.FioRun:
    """Run fio, and something else from its first words on."""
    writing = asyncio.Event()

    def begun(_name: str, _estimate: Estimate) -> None:
        writing.set()

    work = asyncio.create_task(runner.run(guest, job.workload(), [device], on_estimate=begun, limit=_LIMIT))
    try:
        await writing.wait()
        await strike
        return await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _move(deployment: Deployment, outcome: MoveOutcome) -> None:
    one = control.load(deployment.state).controller(_SURVIVOR)
    to = DEFAULT_TARGET if one.target == _OTHER else _OTHER
    count = (await _sessions(deployment))[_SURVIVOR]["recoveries"]
    loop = asyncio.get_running_loop()
    began = loop.time()
    await _change(deployment, Change(update=(replace(one, target=to),)))
    outcome.calls.append(loop.time() - began)
    await _recovered(deployment, _SURVIVOR, count)
    await asyncio.sleep(_APART)


async def _recovered(deployment: Deployment, name: str, count: int) -> None:
    async with asyncio.timeout(_LIMIT):
        while (await _sessions(deployment))[name]["recoveries"] <= count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _sessions(deployment: Deployment) -> dict[str, dict[str, Any]]:
    guests = (await deployment.control.call("status"))["guests"]
    return {session["controller"]: session for session in guests}


def _longest(run: runner.FioRun, count: int) -> list[float]:
    """The `count` longest I/Os that are apart from each other, in seconds."""
    points: list[tuple[float, float]] = []
    for name, content in run.files.items():
        if name.startswith(f"{LOG_PREFIX}_lat."):
            rows = (line.split(",") for line in content.decode().splitlines())
            points += [(int(row[1]) / 1e9, int(row[0]) / 1e3) for row in rows]
    chosen: list[tuple[float, float]] = []
    for value, when in sorted(points, reverse=True):
        if len(chosen) < count and all(abs(when - other) >= _APART / 2 for _, other in chosen):
            chosen.append((value, when))
    return [value for value, _ in chosen]


async def _kills(
    plan: MovePlan, guest: Guest, deployment: Deployment, outcome: MoveOutcome, progress: Progress
) -> None:
    """The neighbour reads on the default target; the survivor is on the other one, which is killed."""
    if not plan.kills:
        return
    one = control.load(deployment.state).controller(_SURVIVOR)
    if one.target != _OTHER:
        count = (await _sessions(deployment))[_SURVIVOR]["recoveries"]
        await _change(deployment, Change(update=(replace(one, target=_OTHER),)))
        await _recovered(deployment, _SURVIVOR, count)
    runtime = plan.kills * (_APART + 1.5)
    job = Job("neighbour", "randread", iodepth=4, runtime=runtime, extra=_peaks())

    async def kills() -> None:
        for _ in range(plan.kills):
            status = await deployment.control.call("status")
            count = next(one["recoveries"] for one in status["guests"] if one["controller"] == _SURVIVOR)
            os.kill(status["targets"][_OTHER]["pid"], signal.SIGKILL)
            await _recovered(deployment, _SURVIVOR, count)
            await asyncio.sleep(_APART)

    progress.step("the neighbour reads undisturbed")
    run = await _with(guest, job, _DEVICES[_NEIGHBOUR], asyncio.sleep(0))
    counted(run, outcome)
    outcome.before += _longest(run, 1)
    progress.step(f"the neighbour reads while the other target is killed {plan.kills} times")
    run = await _with(guest, job, _DEVICES[_NEIGHBOUR], kills())
    counted(run, outcome)
    outcome.during += _longest(run, 1)
