"""What a measurement cost in CPU time: of host processes, and of the guest's CPUs.

Owns sampling of /proc/<pid>/stat and the arithmetic over samples. Start-up, warm-up and the end of fio are
kept out by taking the difference between two instants inside the run, by interpolation.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from types import TracebackType

_TICKS = os.sysconf("SC_CLK_TCK")
_INTERVAL = 0.25

Sample = tuple[float, float]
"""When (seconds), and the CPU seconds used until then."""


def process_seconds(pid: int) -> float:
    """User and system time of all threads of a process.

    :raises ProcessLookupError: there is none.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    # The name, in parentheses, may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def used(samples: Sequence[Sample], start: float, end: float) -> float | None:
    """CPU seconds per second between two instants; None when the samples do not reach over both."""
    if len(samples) < 2 or end <= start or start < samples[0][0] or end > samples[-1][0]:
        return None
    return (_at(samples, end) - _at(samples, start)) / (end - start)


def _at(samples: Sequence[Sample], instant: float) -> float:
    index = max(1, bisect_left(samples, instant, key=lambda sample: sample[0]))
    (t0, v0), (t1, v1) = samples[index - 1], samples[index]
    return v0 if t1 == t0 else v0 + (v1 - v0) * (instant - t0) / (t1 - t0)


def guest_samples(log: str) -> list[Sample]:
    """The guest's own log: first the number of its CPUs, then in each line its uptime and the `cpu` line of its
    /proc/stat.

    What was used is what was not idle. Linux measures idle time when it enters and leaves it, but counts busy time by
    what each tick meets: work between two ticks, of a CPU that is idle again when they come, is lost by that.
    """
    count, samples = 0, []
    for line in log.splitlines():
        first, *fields = line.split()
        if first == "cpus" and len(fields) == 1:
            count = int(fields[0])
        if len(fields) < 9 or fields[0] != "cpu":
            continue
        uptime, idle, iowait = float(first), int(fields[4]), int(fields[5])
        # 100 ticks a second is what /proc promises on x86 (USER_HZ), whatever the kernel's own clock is.
        samples.append((uptime, count * uptime - (idle + iowait) / 100))
    return samples if count else []


class ProcessSampler(AbstractAsyncContextManager["ProcessSampler"]):
    """Samples named groups of processes while it is entered; a process that ends keeps its last value."""

    def __init__(self, processes: Mapping[str, Sequence[int]]) -> None:
        self._processes = processes
        self._last: dict[int, float] = {}
        self._task: asyncio.Task[None] | None = None
        self.samples: dict[str, list[Sample]] = {name: [] for name in processes}

    def _sample(self) -> None:
        now = time.monotonic()
        for name, pids in self._processes.items():
            for pid in pids:
                with suppress(ProcessLookupError):
                    self._last[pid] = process_seconds(pid)
            self.samples[name].append((now, sum(self._last.get(pid, 0.0) for pid in pids)))

    async def _run(self) -> None:
        while True:
            self._sample()
            await asyncio.sleep(_INTERVAL)

    async def __aenter__(self) -> ProcessSampler:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        # wait, not await: the task's own cancellation ends here, one of the caller's goes on.
        await asyncio.wait([self._task])
        self._sample()
