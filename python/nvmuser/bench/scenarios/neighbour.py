"""What a guest notices of another one on the same core of the target: a reader's IOPS beside what the other does.

Owns the list of what is done beside the reader, the rounds, and what is made of them. `neighbour_clients` measures,
`neighbour_acts` has the deployment and what happens on it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvmuser import __version__, initiator
from nvmuser.bench.measure import environment, stats, versions
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.bench.scenarios.neighbour_acts import (
    DISCARDED,
    FILLED,
    NEIGHBOUR,
    POOLED,
    READER,
    WRITTEN,
    ZEROED,
    World,
)
from nvmuser.bench.scenarios.neighbour_clients import Act, Clients, Seen, Work
from nvmuser.errors import UsageError
from nvmuser.initiator.commands import Opcode
from nvmuser.toolchain import find_spdk

SCHEMA = "nvmuser.bench.neighbour/1"
BASE = "writer"
"""Ratios are over what the reader does beside this one."""
BULK, SHALLOW = "bulk", "bulk_shallow"
"""What the depth of a neighbour's queue costs a reader: the one over the other is `fairness`."""
_WRITES = Work(WRITTEN)
_LARGE = 128 << 10


@dataclass(frozen=True)
class Beside:
    """What is done beside the reader.

    :param what: in words.
    :param work: what the neighbour's client does all the time.
    :param act: what happens meanwhile, a method of `World`.
    """

    what: str
    work: Work | None = _WRITES
    act: Callable[[World, int], AbstractAsyncContextManager[Act]] | None = None


BESIDE = {
    "nothing": Beside("nothing", None),
    BASE: Beside("4k random writes at depth 4"),
    "flush": Beside("the same, each followed by a flush", Work(WRITTEN, then=Opcode.FLUSH)),
    "discard": Beside("each followed by a discard", Work(DISCARDED, then=Opcode.DATASET_MANAGEMENT)),
    "write_zeroes": Beside("each followed by Write Zeroes", Work(ZEROED, then=Opcode.WRITE_ZEROES)),
    "fill": Beside("the same into a file without blocks", Work(FILLED)),
    "attach": Beside("a namespace attached and detached", act=World.attach),
    "snapshot": Beside("a snapshot made of what is written", Work(POOLED), World.snapshot),
    "recover": Beside("another client killed, and one in its place", act=World.recover),
    "create": Beside("a controller and its volume created", act=World.create),
    BULK: Beside("128k random reads at depth 256", Work(WRITTEN, "randread", 256, _LARGE)),
    SHALLOW: Beside("128k random reads at depth 8", Work(WRITTEN, "randread", 8, _LARGE)),
}


@dataclass(frozen=True)
class NeighbourPlan:
    """What is measured, how often, and for how many seconds each time.

    :param memory: the reader's volume and the one that is written are memory of the target's.
    """

    beside: Sequence[str] = tuple(BESIDE)
    rounds: int = 5
    runtime: float = 1.0
    memory: bool = False


@dataclass(frozen=True)
class NeighbourResult:
    """What the reader saw, one value a round, by what was done beside it."""

    plan: NeighbourPlan
    seen: dict[str, list[Seen]]
    header: dict[str, Any]

    @property
    def noise(self) -> float:
        """The share of an idle spin's time that was taken away."""
        noise: float = self.header["noise"]
        return noise

    def ratio(self, name: str) -> stats.Interval:
        """The reader's IOPS over those beside a writer, the median of the rounds."""
        return self._ratio(name, BASE)

    def _ratio(self, name: str, base: str) -> stats.Interval:
        return stats.ratio([each.iops for each in self.seen[name]], [each.iops for each in self.seen[base]])

    @property
    def fairness(self) -> float | None:
        """The reader's IOPS beside a deep queue over those beside a shallow one; None: not both were measured."""
        return self._ratio(BULK, SHALLOW).median if {BULK, SHALLOW} <= self.seen.keys() else None

    def to_json(self) -> dict[str, Any]:
        """Medians by what was done beside the reader; `max_us` is the worst of all rounds."""
        names = list(self.seen)
        ratios = {name: self.ratio(name) for name in names}
        return {
            "schema": SCHEMA,
            "ratio": {name: ratios[name].median for name in names},
            "ratio_ci": {name: [ratios[name].low, ratios[name].high] for name in names},
            "fairness": self.fairness,
            "iops": {name: self._median(name, "iops") for name in names},
            "p99_9_us": {name: self._median(name, "p99_9_us") for name in names},
            "max_us": {name: max(each.max_us for each in self.seen[name]) for name in names},
            "commands": {name: sum(each.commands for each in self.seen[name]) for name in names},
            "act_s": {name: self._median(name, "act_s") for name in names if BESIDE[name].act},
            "client_waited": {name: self._median(name, "client_waited") for name in names},
            "target_waited": {name: self._median(name, "target_waited") for name in names},
            "ci_level": stats.level(self.plan.rounds),
            "backing": "memory" if self.plan.memory else "file",
            "rounds": self.plan.rounds,
            "runtime": self.plan.runtime,
            **self.header,
        }

    def _median(self, name: str, field: str) -> float:
        values: list[float] = [getattr(each, field) for each in self.seen[name]]
        return statistics.median(values)


async def measure(plan: NeighbourPlan, directory: Path, progress: Progress) -> NeighbourResult:
    """Measure each thing once a round.

    :param directory: where the volumes' files go, for as long as it is measured.
    :raises UsageError: there is one CPU only.
    :raises NvmuserError: the target or a client does not do what is asked.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise UsageError("two CPUs are needed, one for the target and one for its clients")
    header = await asyncio.to_thread(_header, directory)
    progress.step("starting a target")
    async with _connected(plan, directory, cpus[0], cpus[-1]) as (world, clients):
        seen = await alternate(_measured(plan, world, clients), plan.rounds, progress, what="beside, ")
    return NeighbourResult(plan, seen, header)


def _header(directory: Path) -> dict[str, Any]:
    spdk = find_spdk()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "noise": environment.spin(),
        "environment": environment.look().begun(),
        "file_system": environment.file_system(directory),
        "versions": {
            "nvmuser": __version__,
            "commit": versions.commit(Path(__file__).parent),
            "spdk": spdk.version,
            "spdk_patches": versions.patches(spdk),
        },
    }


@asynccontextmanager
async def _connected(
    plan: NeighbourPlan, directory: Path, client_cpu: int, target_cpu: int
) -> AsyncIterator[tuple[World, Clients]]:
    files = tempfile.TemporaryDirectory(dir=directory, prefix="volumes-")
    with files, scratch("nvmuser-") as root:
        async with World.start(root, Path(files.name), target_cpu, memory=plan.memory) as world:
            with (
                initiator.connect(world.directory(READER)) as reader,
                initiator.connect(world.directory(NEIGHBOUR)) as neighbour,
            ):
                yield world, Clients(reader, neighbour, client_cpu, await world.reactor())


def _measured(plan: NeighbourPlan, world: World, clients: Clients) -> dict[str, Callable[[int], Awaitable[Seen]]]:
    """What to measure in each round, by name; always the base."""

    def measured(beside: Beside) -> Callable[[int], Awaitable[Seen]]:
        async def one(number: int) -> Seen:
            if beside.act is None:
                return await clients.measure(beside.work, plan.runtime, seed=number)
            async with beside.act(world, number) as act:
                return await clients.measure(beside.work, plan.runtime, act, seed=number)

        return one

    return {name: measured(beside) for name, beside in BESIDE.items() if name in {BASE, *plan.beside}}
