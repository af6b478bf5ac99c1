"""The two transports between a QEMU and our controllers, compared: its own vfio-user client, and libvfio.

Owns a deployment, two disks that are alike, and two guests of the same image in the same QEMU, one for each transport.
A guest is stopped while the other is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure import environment, runner, stats, versions
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.disks import fill, output_directory
from nvmuser.bench.measure.fio import Job
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.report.result import JobResult
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.bench.scenarios.demo import MEMORY, SIZE
from nvmuser.errors import GuestError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.toolchain import accelerator, find_appliance, find_libvfio, find_qemu, find_spdk

TRANSPORTS = ("libvfio", "native")
_SCHEMA = "nvmuser.bench.transports/1"
_FEWEST = 3
_QUIT = 10.0


@dataclass(frozen=True)
class TransportComparison:
    """What came out: for each transport, one result a round."""

    job: Job
    cpus: int
    rounds: Mapping[str, Sequence[JobResult]]
    environment: environment.Environment
    versions: Mapping[str, str | None]

    def series(self, transport: str, number: str = "iops") -> list[float]:
        """One number of each round: `iops`, or `p99` in nanoseconds."""
        return [result.iops if number == "iops" else result.lat_ns.p99 for result in self.rounds[transport]]

    @property
    def ratio(self) -> stats.Interval:
        """IOPS through libvfio over those through QEMU's own client: the median over the rounds."""
        return stats.ratio(self.series("libvfio"), self.series("native"))

    @property
    def unclear(self) -> str | None:
        """Why the ratio means little, if so."""
        if self.ratio.samples < _FEWEST:
            return f"{self.ratio.samples} rounds, at least {_FEWEST} are needed"
        return None

    def to_json(self) -> dict[str, Any]:
        """`ratio` first of all."""
        median = {name: {transport: stats.median(self.series(transport, name)).median for transport in TRANSPORTS}
                  for name in ("iops", "p99")}  # fmt: skip
        return {
            "schema": _SCHEMA,
            "ratio": round(self.ratio.median, 4),
            "ratio_ci": [round(self.ratio.low, 4), round(self.ratio.high, 4)],
            "unclear": self.unclear,
            "rounds": self.ratio.samples,
            "iops": median["iops"],
            "lat_ns_p99": median["p99"],
            "iops_by_round": {transport: self.series(transport) for transport in TRANSPORTS},
            "job": asdict(self.job),
            "guest_cpus": self.cpus,
            "accelerator": accelerator(),
            "versions": dict(self.versions),
            "environment": self.environment.to_json(),
        }


async def compare(job: Job, output: Path, progress: Progress, *, rounds: int, cpus: int = 1) -> TransportComparison:
    """Measure; fio's own files of each run are kept in `output`.

    :raises GuestError: a guest did not boot, or a block was wrong.
    """
    # Report what is missing before anything is made.
    find_spdk(), find_qemu(), find_appliance(), find_libvfio()
    output_directory(output)
    files = tempfile.TemporaryDirectory(prefix="disks-", dir=output)
    with files, scratch("nvmuser-transports-") as directory:
        progress.step("writing the disks' files")
        for transport in TRANSPORTS:
            await asyncio.to_thread(fill, Path(files.name) / transport, SIZE)
        machine = environment.look()
        async with contextlib.AsyncExitStack() as stack:
            deployment = await stack.enter_async_context(Deployment.start(directory / "state"))
            guests = {}
            for transport in TRANSPORTS:
                progress.step(f"booting the guest with {transport}")
                opened = _guest(transport, deployment, Path(files.name) / transport, directory / transport, job, cpus)
                guests[transport] = await stack.enter_async_context(opened)
            found = await _versions(guests["native"])

            def measured(transport: str) -> Callable[[int], Awaitable[JobResult]]:
                kept = output / "fio"
                return lambda number: _measure(guests[transport], job, kept / f"round{number + 1}" / transport)

            results = await alternate({transport: measured(transport) for transport in TRANSPORTS}, rounds, progress)
    return TransportComparison(job, cpus, results, machine, found)


@contextlib.asynccontextmanager
async def _guest(
    transport: str, deployment: Deployment, backing: Path, directory: Path, job: Job, cpus: int
) -> AsyncIterator[Guest]:
    """A guest with one disk, stopped."""
    socket = await deployment.disk(transport, backing)
    spec = GuestSpec(
        cpus=cpus,
        memory=MEMORY,
        sockets=(socket,),
        directories=(deployment.device(transport),) if transport == "libvfio" else None,
        append="nvme.poll_queues=1" if job.poll else "",
    )
    async with launch(spec, directory) as guest:
        await runner.nvme_devices(guest, 1)
        await guest.qmp.execute("stop")
        yield guest
        # Stopped, it cannot shut down by itself; nobody needs its data.
        await guest.qmp.execute("quit")
        await guest.process.wait_ended(_QUIT)


@contextlib.asynccontextmanager
async def _turn(guest: Guest) -> AsyncIterator[None]:
    await guest.qmp.execute("cont")
    try:
        yield
    finally:
        await guest.qmp.execute("stop")


async def _versions(guest: Guest) -> dict[str, str | None]:
    async with _turn(guest):
        return await versions.look(guest)


async def _measure(guest: Guest, job: Job, keep: Path) -> JobResult:
    async with _turn(guest):
        done = await runner.run(guest, job.workload(), ["/dev/nvme0n1"])
    done.keep(keep)
    [result] = done.jobs
    if result.wrong:
        raise GuestError(f"{job.name}: {result.wrong}")
    return result
