"""What it costs to reach a volume over vfio-user, and what Python adds: host clients side by side.

Runs the programs in alternating rounds, so that what slows the machine slows all. Ratios are of one round each.
`host_servers` owns the target, `host_programs` knows the programs, `gpio` measures devices in Python, `host_peers`
other kinds of servers.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure import environment, stats
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.bench.scenarios import gpio
from nvmuser.bench.scenarios import host_programs as programs
from nvmuser.bench.scenarios import host_servers as servers
from nvmuser.bench.scenarios.host_programs import HostWorkload
from nvmuser.supervisor.spdk import Target
from nvmuser.toolchain import Spdk, proc

_GRACE_S = 60.0
"""For starting and ending a program, beside the time that it measures."""

GOALS = {"perf_ratio": 0.95, "async_reads_per_s": 150_000, "gpio_ratio": 2.5}
"""The last is a maximum."""


@dataclass(frozen=True)
class HostResult:
    """Commands a second of each program, one value a round."""

    workload: HostWorkload
    volume: str
    iops: dict[str, list[float]]
    devices: gpio.GpioResult
    noise: float

    def ratio(self, name: str, base: str) -> stats.Interval:
        """IOPS of one program over those of another, the median over the rounds."""
        return stats.ratio(self.iops[name], self.iops[base])

    def to_json(self) -> dict[str, Any]:
        """The ratios that have goals first."""
        work = self.workload
        return {
            "perf_ratio": self.ratio("nvmuser", "spdk_nvme_perf").median,
            "async_reads_per_s": statistics.median(self.iops["async"]),
            "gpio_ratio": self.devices.ratio,
            "transport_ratio": self.ratio("spdk_nvme_perf", "bdevperf").median,
            "fio_ratio": self.ratio("fio", "spdk_nvme_perf").median,
            "iops": self.iops,
            "gpio": self.devices.to_json(),
            "workload": {"pattern": work.pattern, "depth": work.depth, "size": work.size, "seconds": work.seconds},
            "volume": self.volume,
            "noise": self.noise,
        }


async def measure(
    root: Path, spdk: Spdk, *, rounds: int, pattern: str = "randread", depth: int = 32, size: int = 4096,
    seconds: int = 2, file: Path | None = None, progress: Progress | None = None,
) -> HostResult:  # fmt: skip
    """Run every program `rounds` times, then the devices.

    :param root: a short path, for sockets are in it.
    :param file: the volume: this file, in the target as in bdevperf. None: memory, in each of them.
    :raises UsageError: there is one CPU only.
    :raises NvmuserError: a program or the target failed.
    """
    client_cpu, target_cpu = servers.cpus()
    work = HostWorkload(pattern, depth, size, seconds, client_cpu)
    volume = servers.volume(file)
    config = root / "bdevperf.json"
    config.write_text(programs.bdevperf_config(volume), encoding="utf-8")
    noise = await asyncio.to_thread(environment.spin)
    async with servers.nvmf(root, spdk, target_cpu, volume) as (target, directory):
        iops = await alternate(_programs(spdk, work, config, directory, target), rounds, progress)
    devices = await gpio.measure(progress=progress)
    return HostResult(work, "memory" if file is None else str(file), iops, devices, noise)


def _programs(
    spdk: Spdk, work: HostWorkload, config: Path, directory: Path, target: Target
) -> dict[str, Callable[[int], Awaitable[float]]]:
    """What to run in each round, by the name of the program."""
    nqn = servers.NQN

    async def run(argv: list[str], parse: Callable[[str], float]) -> float:
        return parse(await asyncio.to_thread(proc.output, argv, timeout=work.seconds + _GRACE_S))

    async def bdevperf(_round: int) -> float:
        # A target that polls would have its share of the memory's and the caches' speed.
        await target.park()
        try:
            return await run(programs.bdevperf(spdk, work, config), programs.total)
        finally:
            await target.unpark()

    return {
        "bdevperf": bdevperf,
        "spdk_nvme_perf": lambda _round: run(programs.spdk_nvme_perf(spdk, work, directory, nqn), programs.total),
        "nvmuser": lambda _round: run(programs.nvmuser(work, directory, awaited=False), float),
        "async": lambda _round: run(programs.nvmuser(work, directory, awaited=True), float),
        "fio": lambda _round: run(programs.fio(spdk, work, directory, nqn), programs.fio_iops),
    }
