"""Ours against other kinds of servers, at the device: the same volume on one core, a client on another, no guest.

In a guest under emulation the guest's CPU ends the race. Owns both servers, of which the one that is not measured is
stopped; rounds alternate. A server that waits for its client is not slow: its CPU time for each I/O is measured too.
`host_servers` knows the servers, `host_programs` the clients.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nvmuser.bench.measure import environment, stats
from nvmuser.bench.measure.hugepage_loan import borrowed_hugepages
from nvmuser.bench.measure.progress import Progress, Silent
from nvmuser.bench.rounds.alternate import rounds as alternating
from nvmuser.bench.scenarios import host_programs as programs
from nvmuser.bench.scenarios import host_servers as servers
from nvmuser.bench.scenarios.host_programs import HostWorkload
from nvmuser.errors import SetupError
from nvmuser.initiator.environment import MEMORY_MIB as CLIENT_MIB
from nvmuser.rpc import Client
from nvmuser.supervisor.spdk import MEMORY_MIB
from nvmuser.toolchain import Spdk, proc

OURS = "nvmuser"
VHOST = "vhost-user-blk"
PEERS = (VHOST,)
PATTERNS = ("randread", "randwrite")
DEPTHS = (1, 32, 128)
_GRACE_S = 60.0
_HUGEPAGES = (2 * MEMORY_MIB + CLIENT_MIB + 16) << 20
"""Both servers and one client. Without them SPDK's vhost target dies when a client connects."""


@dataclass(frozen=True)
class Run:
    """One run on one server.

    :param us_per_io: microseconds for which the server's core was busy, for each I/O.
    """

    iops: float
    us_per_io: float

    @property
    def capacity(self) -> float:
        """I/Os that the core would have done in a second in which it is never idle."""
        return 1e6 / self.us_per_io


@dataclass(frozen=True)
class PeersResult:
    """Runs by job and by server, one a round."""

    runs: dict[str, dict[str, list[Run]]]
    volume: str
    size: int
    seconds: int
    noise: float

    def ratio(self, job: str, value: Callable[[Run], float]) -> stats.Interval:
        """Ours over the peer's, the median over the rounds."""
        ours, theirs = (list(map(value, self.runs[job][name])) for name in (OURS, VHOST))
        return stats.ratio(ours, theirs)

    def to_json(self) -> dict[str, Any]:
        """`device_ratios` first: IOPS, ours over the peer's. `device_cpu_ratios`: I/Os a busy second, likewise."""
        iops = {job: self.ratio(job, lambda run: run.iops) for job in self.runs}
        capacity = {job: self.ratio(job, lambda run: run.capacity) for job in self.runs}
        return {
            "device_ratios": {job: found.median for job, found in iops.items()},
            "device_ratios_ci": {job: [found.low, found.high] for job, found in iops.items()},
            "device_cpu_ratios": {job: found.median for job, found in capacity.items()},
            "device_cpu_ratios_ci": {job: [found.low, found.high] for job, found in capacity.items()},
            "device_iops": self._rounds(lambda run: run.iops),
            "device_us_per_io": self._rounds(lambda run: run.us_per_io),
            "ci_level": min(stats.level(found.samples) for found in iops.values()),
            "workload": {"size": self.size, "seconds": self.seconds},
            "volume": self.volume,
            "noise": self.noise,
        }

    def median(self, job: str, name: str, value: Callable[[Run], float]) -> float:
        """Of the rounds of one server."""
        return statistics.median(map(value, self.runs[job][name]))

    def _rounds(self, value: Callable[[Run], float]) -> dict[str, dict[str, list[float]]]:
        return {
            job: {name: [value(run) for run in runs] for name, runs in servers.items()}
            for job, servers in self.runs.items()
        }


@dataclass(frozen=True)
class _Server:
    """A server that stands still until it is measured."""

    rpc: Client
    pid: int
    client: Callable[[HostWorkload], list[str]]

    @contextmanager
    def awake(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGSTOP)

    async def run(self, work: HostWorkload) -> Run:
        """:raises SetupError: the client failed."""
        with self.awake():
            before = await servers.busy_seconds(self.rpc)
            printed = await asyncio.to_thread(proc.output, self.client(work), timeout=work.seconds + _GRACE_S)
            busy = await servers.busy_seconds(self.rpc) - before
        iops = float(printed)
        return Run(iops, busy / (iops * work.seconds) * 1e6)


def jobs(work: HostWorkload, patterns: Sequence[str], depths: Sequence[int]) -> dict[str, HostWorkload]:
    """By their names."""
    return {
        f"{pattern}-{work.size >> 10}k-qd{depth}": replace(work, pattern=pattern, depth=depth)
        for pattern in patterns
        for depth in depths
    }


async def measure(
    root: Path, spdk: Spdk, *, rounds: int, patterns: Sequence[str] = PATTERNS, depths: Sequence[int] = DEPTHS,
    size: int = 4096, seconds: int = 2, file: Path | None = None, progress: Progress | None = None,
) -> PeersResult:  # fmt: skip
    """Run every job on both servers, `rounds` times.

    :param root: a short path, for sockets are in it.
    :param file: the volume: this file, in both. None: memory, in each of them.
    :raises UsageError: there is one CPU only.
    :raises SetupError: there are no hugepages, or a client failed.
    :raises TargetError: a server did not start.
    """
    client_cpu, target_cpu = servers.cpus()
    wanted = jobs(HostWorkload("", 0, size, seconds, client_cpu), patterns, depths)
    runs: dict[str, dict[str, list[Run]]] = {job: {OURS: [], VHOST: []} for job in wanted}
    noise = await asyncio.to_thread(environment.spin)
    with borrowed_hugepages(_HUGEPAGES) as missing:
        if missing:
            raise SetupError(f"{VHOST} needs hugepages: {missing}")
        async with _servers(root, spdk, target_cpu, file) as running:
            await _alternate(running, wanted, runs, rounds, progress or Silent())
    return PeersResult(runs, "memory" if file is None else str(file), size, seconds, noise)


async def _alternate(
    running: dict[str, _Server], wanted: dict[str, HostWorkload], runs: dict[str, dict[str, list[Run]]], rounds: int,
    shown: Progress,
) -> None:  # fmt: skip
    total, done, began = rounds * len(wanted) * len(running), 0, time.monotonic()
    for number, names in alternating(list(running), rounds):
        for job, work in wanted.items():
            for name in names:
                left = f", {(time.monotonic() - began) / done * (total - done):.0f} s left" if done else ""
                shown.step(f"round {number + 1} of {rounds}{left}: {job}, {name}")
                runs[job][name].append(await running[name].run(work))
                done += 1


@asynccontextmanager
async def _servers(root: Path, spdk: Spdk, cpu: int, file: Path | None) -> AsyncIterator[dict[str, _Server]]:
    """Both, stopped."""
    program = programs.compile_vhost_client(root)
    volume = servers.volume(file)
    async with servers.nvmf(root, spdk, cpu, volume, hugepages=True) as (target, directory):
        ours = _Server(
            target.rpc,
            target.process.pid,
            lambda work: programs.nvmuser(work, directory, awaited=False, hugepages=True),
        )
        with _stopped(ours.pid):
            async with servers.vhost(root, spdk, cpu, volume) as (rpc, pid, socket):
                theirs = _Server(rpc, pid, lambda work: programs.vhost_client(program, work, socket))
                with _stopped(pid):
                    yield {OURS: ours, VHOST: theirs}


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """A process that is stopped cannot end in good order."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
