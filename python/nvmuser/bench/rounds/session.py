"""Rounds of jobs on slots, interleaved: one right after the other, in an order that is balanced over the rounds.

All guests are booted once and paused (QEMU stopped, spinning backends too) but for the one that is measured.
Owns the rounds, the deadline, and what is written as it is measured. `compare` and `tune` say what the slots are;
`analysis` draws the conclusions.
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
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.report import records
from nvmuser.bench.report.records import Run
from nvmuser.bench.rounds import alternate
from nvmuser.bench.rounds.matrix import Case
from nvmuser.bench.rounds.peers import Slot
from nvmuser.errors import GuestError, NvmuserError, UsageError
from nvmuser.toolchain import accelerator

Opener = Callable[[str, int], AbstractAsyncContextManager[Slot]]
"""From a name and the number of the guest's CPUs to a booted guest."""


@dataclass(frozen=True)
class SessionPlan:
    """What is measured on what. All ratios are with `base`; without it there is none."""

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

    def with_files_on(self, directory: Path) -> SessionPlan:
        """With the type of the file system of the disks among what must be the same."""
        return replace(self, settings={**self.settings, "file_system": environment.file_system(directory)})


class Session:
    """One comparison while it runs.

    :param earlier: what an interrupted run of the same has left. A job that it measured on every peer in a round is
        not measured again; one that some peer lacks is, on all of them: ratios are of what was measured together.
    """

    def __init__(
        self,
        plan: SessionPlan,
        opener: Opener,
        output: Path,
        writer: records.Writer,
        progress: Progress,
        earlier: records.Comparison | None = None,
    ) -> None:
        self._plan = plan
        self._opener = opener
        self._output = output
        self._writer = writer
        self._progress = progress
        self._earlier = earlier
        self._had: dict[tuple[int, str], set[str]] = defaultdict(set)
        """Which peers an earlier run has measured, by round and job."""
        for run in earlier.runs if earlier else []:
            self._had[run.round, run.job].add(run.peer)
        self._done = 0
        self._noise: list[float] = []
        self._out: set[tuple[str, int]] = set()
        """Slots that cannot go on, by name and CPUs."""
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
                slots = await self._open(stack, cpus)
                await self._begin(slots)
                await self._rounds(cases, slots, deadline)
        self._writer.footer({"noise": self._noise, "seconds": time.monotonic() - started})

    async def _rounds(self, cases: Sequence[Case], slots: Sequence[Slot], deadline: float) -> None:
        for number, ordered in alternate.rounds(slots, self._plan.rounds, deadline):
            for case in cases:
                await self._round(number, case, ordered)
            self._noise.append(await asyncio.to_thread(environment.spin))

    async def _open(self, stack: contextlib.AsyncExitStack, cpus: int) -> list[Slot]:
        slots = []
        for name in self._plan.names:
            self._step(f"booting the guest of {name}")
            try:
                slot = await stack.enter_async_context(self._opener(name, cpus))
            except NvmuserError as error:
                if name == self._plan.base:
                    raise
                self._skip(name, str(error))
                continue
            await slot.pause()
            slots.append(slot)
        return slots

    def _step(self, text: str) -> None:
        total = len(self._plan.cases) * len(self._plan.names) * self._plan.rounds
        self._progress.step(f"{self._done}/{total} {text}")

    def _skip(self, name: str, reason: str) -> None:
        self._skipped.append((name, reason))
        if self._begun:
            self._write_skipped()
        self._step(f"{name} is left out: {reason}")

    def _write_skipped(self) -> None:
        for name, reason in self._skipped:
            self._writer.skipped(name, reason)
        self._skipped.clear()

    async def _begin(self, slots: Sequence[Slot]) -> None:
        """Write the header once the guests are known, or checks that it is still the same."""
        if self._begun:
            return
        self._begun = True
        self._step("measuring background noise")
        before = await asyncio.to_thread(environment.spin)
        document = await self._header(slots, before)
        if self._earlier is None:
            self._writer.header(document)
        else:
            self._noise.append(before)
            records.check_same(self._earlier.header, records.plain(document))
        self._write_skipped()

    async def _header(self, slots: Sequence[Slot], before: float) -> dict[str, Any]:
        first = slots[0]
        await first.resume()
        found = await versions.look(first.guest)
        await first.pause()
        cases = self._plan.cases
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "accelerator": accelerator(),
            "versions": found,
            "environment": replace(environment.look(), noise_before=before).begun(),
            "guest": {
                "cpus": sorted({case.guest_cpus for case in cases}),
                "memory_bytes": first.memory,
                "hugepages": all(slot.hugepages for slot in slots),
            },
            "peers_setup": {slot.name: slot.commands for slot in slots},
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

    async def _round(self, number: int, case: Case, slots: Sequence[Slot]) -> None:
        can = {slot.name for slot in slots if slot.polled or not case.poll}
        if can <= self._had[number, case.job.name]:
            self._done += len(slots)
            return
        for slot in slots:
            self._done += 1
            key = (slot.name, case.guest_cpus)
            if key in self._out:
                continue
            if case.poll and not slot.polled:
                if key not in self._said:
                    self._said.add(key)
                    self._skip(slot.name, "polled jobs: it has no polled queue that works here")
                continue
            self._step(f"round {number + 1} of {self._plan.rounds}: {case.job.name} on {slot.name}")
            try:
                await self._measure(number, case, slot)
            except (NvmuserError, QMPError) as error:
                if slot.name == self._plan.base:
                    raise
                self._out.add(key)
                self._skip(slot.name, f"from round {number + 1} on: {error}")

    async def _measure(self, number: int, case: Case, slot: Slot) -> None:
        await slot.resume()
        try:
            for attempt in range(1, self._plan.attempts + 1):
                done = await runner.run(slot.guest, case.job.workload(), [slot.device], processes=slot.processes)
                [job] = done.jobs
                steadiness = stats.steadiness(job.series.iops)
                counts = bool(job.wrong) or steadiness.steady or attempt == self._plan.attempts
                directory = self._output / "fio" / f"round{number + 1}" / slot.name / job.name
                # Keep repeated runs too: often only they show why one was not steady.
                done.keep(directory if counts else directory / f"attempt{attempt}")
                if job.wrong:
                    raise GuestError(f"{job.name} on {slot.name}: {job.wrong}")
                if counts:
                    self._writer.run(Run.of(job, slot.name, number, steadiness, attempt))
                    return
        finally:
            await slot.pause()
