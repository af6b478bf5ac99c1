"""How long real guests wait when the target that all of them use is killed.

Owns a deployment with a standby, and the guests, each with a disk of its own to which fio writes and from which it
verifies. `recovery` has one guest and looks at more; here it is their number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvmuser.bench.measure import runner
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.fio import Job
from nvmuser.bench.measure.fio_output import Estimate
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.scenarios.verified import longest_io
from nvmuser.errors import GuestError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.toolchain import accelerator

_SIZE = 256 << 20
_MEMORY = 384 << 20
_JOB = Job("verify", "randwrite", iodepth=8, io_size="24M", verify="crc32c", extra=(("fsync", "64"),))
_LIMIT_S = 400.0


async def measure(root: Path, count: int, rounds: int, progress: Progress) -> dict[str, Any]:
    """The longest I/O of `count` guests over `rounds` kills.

    :raises GuestError: a guest does not boot, an I/O failed, or a block is wrong.
    """
    stalls: list[float] = []
    async with Deployment.start(root / "s", standby=True) as deployment, contextlib.AsyncExitStack() as stack:
        guests = []
        for number in range(count):
            progress.step(f"guests, booting {number + 1} of {count}")
            backing = root / f"d{number}"
            with backing.open("wb") as file:
                file.truncate(_SIZE)
            spec = GuestSpec(memory=_MEMORY, sockets=(await deployment.disk(f"g{number}", backing),))
            guests.append(await stack.enter_async_context(launch(spec, root / f"g{number}")))
        for number in range(rounds):
            progress.step(f"guests, {count} writing, kill {number + 1} of {rounds}, verifying")
            stalls += await _killed(deployment, guests)
    spread = {"median": statistics.median(stalls), "max": max(stalls)}
    return {"stall_s": spread, "kills": rounds, "accelerator": accelerator()}


async def _killed(deployment: Deployment, guests: Sequence[Guest]) -> list[float]:
    """Kill the target when all guests write. Returns the longest I/O of each."""
    target = await deployment.standby()
    writing = [asyncio.Event() for _ in guests]
    runs = [asyncio.create_task(_written(guest, event)) for guest, event in zip(guests, writing, strict=True)]
    try:
        for event in writing:
            await event.wait()
        os.kill(target, signal.SIGKILL)
        return [longest_io(run) for run in await asyncio.gather(*runs)]
    finally:
        for task in runs:
            task.cancel()
        await asyncio.gather(*runs, return_exceptions=True)


async def _written(guest: Guest, writing: asyncio.Event) -> runner.FioRun:
    def begun(_name: str, _estimate: Estimate) -> None:
        writing.set()

    try:
        run = await runner.run(guest, _JOB.workload(), ["/dev/nvme0n1"], on_estimate=begun, limit=_LIMIT_S)
    finally:
        writing.set()  # also of one that has failed: the others are not to wait for it
    for job in run.jobs:
        if job.wrong:
            raise GuestError(f"fio: {job.wrong}")
    return run
