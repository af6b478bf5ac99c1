"""Rounds of jobs on seats, interleaved: one right after the other, in an order that is balanced over the rounds.

All guests are booted once and parked (QEMU stopped, spinning backends too) but for the one that is measured.
Owns the rounds, the deadline, and what is written as it is measured. What the seats are is told by `compare`
and `tune`; what is concluded is `analysis`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qemu.qmp import QMPError

from nvmuser.bench.measure import environment, runner, stats, versions
from nvmuser.bench.report import records
from nvmuser.bench.report.records import Run
from nvmuser.bench.rounds import order
from nvmuser.bench.rounds.matrix import Case
from nvmuser.bench.rounds.peers import Seat
from nvmuser.errors import GuestError, NvmuserError, UsageError
from nvmuser.toolchain import accelerator


@dataclass(frozen=True)
class Step:
    """Where a comparison is, for a progress line."""

    done: int
    total: int
    text: str


Report = Callable[[Step], None]
Opener = Callable[[str, int], AbstractAsyncContextManager[Seat]]
"""From a name and the number of the guest's CPUs to a booted guest."""


@dataclass(frozen=True)
class Plan:
    """What is measured on what. All ratios are with `base`, without which there is nothing to say."""

    cases: Sequence[Case]
    names: Sequence[str]
    base: str
    rounds: int = 5
    minutes: float = math.inf
    """No round is begun that would probably end later than this."""
    attempts: int = 2
    """How often a job is measured until it was steady; the last one counts anyhow."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else must be the same for rounds of two runs to belong together; stands in the header."""

    def __post_init__(self) -> None:
        if self.base not in self.names:
            raise UsageError(f"a comparison needs {self.base}: add it")
        if self.rounds < 1:
            raise UsageError("a comparison needs at least one round")

    def with_files_on(self, directory: Path) -> Plan:
        """With the type of the file system of the disks among what must be the same."""
        return replace(self, settings={**self.settings, "file_system": environment.file_system(directory)})


class Session:
    """One comparison while it runs.

    :param earlier: what an interrupted run of the same has left. A job that it measured on every peer in a round is
        not measured again; one that some peer lacks is, on all of them: ratios are of what was measured together.
    """

    def __init__(
        self,
        plan: Plan,
        opener: Opener,
        output: Path,
        writer: records.Writer,
        report: Report,
        earlier: records.Comparison | None = None,
    ) -> None:
        self._plan = plan
        self._opener = opener
        self._output = output
        self._writer = writer
        self._report = report
        self._earlier = earlier
        self._had: dict[tuple[int, str], set[str]] = defaultdict(set)
        """Which peers an earlier run has measured, by round and job."""
        for run in earlier.runs if earlier else []:
            self._had[run.round, run.job].add(run.peer)
        self._done = 0
        self._noise: list[float] = []
        self._out: set[tuple[str, int]] = set()
        """Seats that cannot go on, by name and CPUs."""
        self._said: set[tuple[str, int]] = set()
        self._skipped: list[tuple[str, str]] = []
        """Those left out that are not written yet, for nothing may stand before the header."""
        self._begun = False

    async def run(self) -> None:
        """:raises NvmuserError: the base cannot run; another that cannot is left out, and the records say why."""
        started = time.monotonic()
        passes = sorted({case.guest_cpus for case in self._plan.cases})
        for number, cpus in enumerate(passes, 1):
            cases = [case for case in self._plan.cases if case.guest_cpus == cpus]
            deadline = started + self._plan.minutes * 60 * number / len(passes)
            async with contextlib.AsyncExitStack() as stack:
                seats = await self._open(stack, cpus)
                await self._begin(seats)
                await self._rounds(cases, seats, deadline)
        self._writer.footer({"noise": self._noise, "seconds": time.monotonic() - started})

    async def _rounds(self, cases: Sequence[Case], seats: Sequence[Seat], deadline: float) -> None:
        for number in range(self._plan.rounds):
            begun = time.monotonic()
            for case in cases:
                await self._round(number, case, seats)
            self._noise.append(await asyncio.to_thread(environment.spin))
            now = time.monotonic()
            if now + (now - begun) > deadline:
                return

    async def _open(self, stack: contextlib.AsyncExitStack, cpus: int) -> list[Seat]:
        seats = []
        for name in self._plan.names:
            self._tell(f"booting the guest of {name}")
            try:
                seat = await stack.enter_async_context(self._opener(name, cpus))
            except NvmuserError as error:
                if name == self._plan.base:
                    raise
                self._skip(name, str(error))
                continue
            await seat.park()
            seats.append(seat)
        return seats

    def _tell(self, text: str) -> None:
        total = len(self._plan.cases) * len(self._plan.names) * self._plan.rounds
        self._report(Step(self._done, total, text))

    def _skip(self, name: str, reason: str) -> None:
        self._skipped.append((name, reason))
        if self._begun:
            self._write_skipped()
        self._tell(f"{name} is left out: {reason}")

    def _write_skipped(self) -> None:
        for name, reason in self._skipped:
            self._writer.skipped(name, reason)
        self._skipped.clear()

    async def _begin(self, seats: Sequence[Seat]) -> None:
        """Writes the header once the guests can tell what they are, or sees that it is still the same."""
        if self._begun:
            return
        self._begun = True
        self._tell("listening for noise")
        before = await asyncio.to_thread(environment.spin)
        document = await self._header(seats, before)
        if self._earlier is None:
            self._writer.header(document)
        else:
            self._noise.append(before)
            records.check_same(self._earlier.header, records.plain(document))
        self._write_skipped()

    async def _header(self, seats: Sequence[Seat], before: float) -> dict[str, Any]:
        first = seats[0]
        await first.unpark()
        found = await versions.look(first.guest)
        await first.park()
        cases = self._plan.cases
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "accelerator": accelerator(),
            "versions": found,
            "environment": replace(environment.look(), noise_before=before).begun(),
            "guest": {
                "cpus": sorted({case.guest_cpus for case in cases}),
                "memory_bytes": first.memory,
                "hugepages": all(seat.hugepages for seat in seats),
            },
            "peers_setup": {seat.name: seat.commands for seat in seats},
            "settings": {
                "rounds": self._plan.rounds,
                "runtime": cases[0].job.runtime,
                "ramp": cases[0].job.ramp,
                **self._plan.settings,
            },
            "base": self._plan.base,
            "peers": list(self._plan.names),
            "jobs": {case.job.name: asdict(case.job) for case in cases},
        }

    async def _round(self, number: int, case: Case, seats: Sequence[Seat]) -> None:
        can = {seat.name for seat in seats if seat.polled or not case.poll}
        if can <= self._had[number, case.job.name]:
            self._done += len(seats)
            return
        for seat in order.balanced(seats, number):
            self._done += 1
            key = (seat.name, case.guest_cpus)
            if key in self._out:
                continue
            if case.poll and not seat.polled:
                if key not in self._said:
                    self._said.add(key)
                    self._skip(seat.name, "polled jobs: it has no polled queue that works here")
                continue
            self._tell(f"round {number + 1} of {self._plan.rounds}: {case.job.name} on {seat.name}")
            try:
                await self._measure(number, case, seat)
            except (NvmuserError, QMPError) as error:
                if seat.name == self._plan.base:
                    raise
                self._out.add(key)
                self._skip(seat.name, f"from round {number + 1} on: {error}")

    async def _measure(self, number: int, case: Case, seat: Seat) -> None:
        await seat.unpark()
        try:
            for attempt in range(1, self._plan.attempts + 1):
                done = await runner.run(seat.guest, case.job.workload(), [seat.device], processes=seat.processes)
                [job] = done.jobs
                steadiness = stats.steadiness(job.series.iops)
                counts = bool(job.wrong) or steadiness.steady or attempt == self._plan.attempts
                directory = self._output / "fio" / f"round{number + 1}" / seat.name / job.name
                # What is repeated is kept too: why it was not steady is often seen only there.
                done.keep(directory if counts else directory / f"attempt{attempt}")
                if job.wrong:
                    raise GuestError(f"{job.name} on {seat.name}: {job.wrong}")
                if counts:
                    self._writer.run(Run.of(job, seat.name, number, steadiness, attempt))
                    return
        finally:
            await seat.park()
