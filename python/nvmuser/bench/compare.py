"""Measures peers against each other, fairly: same guest, same jobs, same backing, rounds interleaved.

All guests are booted once and parked (QEMU stopped, spinning backends too) but for the one that is measured.
In each round each job runs on every peer, one right after the other, and the order turns by one peer a round.
Owns the order and the files; what is concluded is `analysis`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvmuser.bench import environment, records, runner, stats, versions
from nvmuser.bench.deployment import Deployment
from nvmuser.bench.disks import fill, output_directory
from nvmuser.bench.matrix import Case
from nvmuser.bench.peers import OURS, Seat, Setup, open_peer
from nvmuser.bench.records import Run
from nvmuser.errors import GuestError, NvmuserError, UsageError
from nvmuser.runtime import accelerator


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    cases: Sequence[Case]
    peers: Sequence[str]
    rounds: int = 5
    size: int = 256 << 20
    backing: str = "file"
    minutes: float = math.inf
    """No round is begun that would probably end later than this."""

    def __post_init__(self) -> None:
        if OURS not in self.peers:
            raise UsageError(f"a comparison needs ours: add the peer '{OURS}'")
        if self.rounds < 1:
            raise UsageError("a comparison needs at least one round")


@dataclass(frozen=True)
class Step:
    """Where a comparison is, for a progress line."""

    done: int
    total: int
    text: str


Report = Callable[[Step], None]


async def compare(plan: Plan, output: Path, report: Report) -> records.Comparison:
    """Runs the whole plan; results are in `output` as they come, fio's own JSON too.

    :raises NvmuserError: ours cannot run; another peer that cannot is left out, and the records say why.
    """
    output_directory(output)
    files = tempfile.TemporaryDirectory(dir="/dev/shm" if plan.backing == "memory" else output, prefix="disks-")
    sockets = tempfile.TemporaryDirectory(prefix="nvmuser-bench-")
    with files, sockets, records.Writer(output / records.FILE) as writer:
        backing = {peer: Path(files.name) / peer for peer in plan.peers}
        report(Step(0, 1, "writing the disks' files"))
        for path in backing.values():
            await asyncio.to_thread(fill, path, plan.size)
        async with Deployment.start(Path(sockets.name) / "state") as deployment:
            measuring = _Measuring(plan, output, writer, report, Path(sockets.name), backing, deployment)
            await measuring.run()
    return records.read(output)


class _Measuring:
    """One comparison while it runs."""

    def __init__(
        self,
        plan: Plan,
        output: Path,
        writer: records.Writer,
        report: Report,
        directory: Path,
        backing: dict[str, Path],
        deployment: Deployment,
    ) -> None:
        self._plan = plan
        self._output = output
        self._writer = writer
        self._report = report
        self._directory = directory
        self._backing = backing
        self._deployment = deployment
        self._done = 0
        self._noise: list[float] = []
        self._impossible: set[tuple[str, int]] = set()
        self._header_written = False

    async def run(self) -> None:
        started = time.monotonic()
        passes = sorted({case.guest_cpus for case in self._plan.cases})
        for number, cpus in enumerate(passes, 1):
            cases = [case for case in self._plan.cases if case.guest_cpus == cpus]
            deadline = started + self._plan.minutes * 60 * number / len(passes)
            async with contextlib.AsyncExitStack() as stack:
                seats = await self._open(stack, cpus)
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
        setup = Setup(cpus, self._directory, self._backing, self._deployment)
        for peer in self._plan.peers:
            self._report(Step(self._done, self._total(), f"booting the guest of {peer}"))
            try:
                seat = await stack.enter_async_context(open_peer(peer, setup))
            except NvmuserError as error:
                if peer == OURS:
                    raise
                self._skip(peer, str(error))
                continue
            await self._write_header(seat)
            await seat.park()
            seats.append(seat)
        return seats

    def _total(self) -> int:
        return len(self._plan.cases) * len(self._plan.peers) * self._plan.rounds

    def _skip(self, peer: str, reason: str) -> None:
        self._writer.skipped(peer, reason)
        self._report(Step(self._done, self._total(), f"{peer} is left out: {reason}"))

    async def _write_header(self, seat: Seat) -> None:
        if self._header_written:
            return
        self._header_written = True
        self._report(Step(0, self._total(), "listening for noise"))
        await seat.park()
        before = await asyncio.to_thread(environment.spin)
        await seat.unpark()
        machine = replace(environment.look(), noise_before=before)
        document: dict[str, Any] = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "accelerator": accelerator(),
            "versions": await versions.look(seat.guest),
            "environment": machine.to_json(),
            "settings": {
                "rounds": self._plan.rounds,
                "backing": self._plan.backing,
                "size_bytes": self._plan.size,
                "runtime": self._plan.cases[0].job.runtime,
                "ramp": self._plan.cases[0].job.ramp,
            },
            "peers": list(self._plan.peers),
            "jobs": {case.job.name: asdict(case.job) for case in self._plan.cases},
        }
        self._writer.header(document)

    async def _round(self, number: int, case: Case, seats: Sequence[Seat]) -> None:
        turn = number % len(seats)
        for seat in [*seats[turn:], *seats[:turn]]:
            self._done += 1
            if case.poll and not await self._can_poll(seat, case.guest_cpus):
                continue
            text = f"round {number + 1} of {self._plan.rounds}: {case.job.name} on {seat.peer}"
            self._report(Step(self._done, self._total(), text))
            await seat.unpark()
            try:
                await self._measure(number, case, seat)
            finally:
                await seat.park()

    async def _can_poll(self, seat: Seat, cpus: int) -> bool:
        """Whether its disk has a polled queue: Linux gives virtio-blk none in a guest with one CPU."""
        if (seat.peer, cpus) in self._impossible:
            return False
        if not seat.polled:
            self._impossible.add((seat.peer, cpus))
            self._skip(
                seat.peer, f"polled jobs: its driver has no polled queue in a guest with {cpus} CPU{'s' * (cpus > 1)}"
            )
        return seat.polled

    async def _measure(self, number: int, case: Case, seat: Seat) -> None:
        for attempt in (1, 2):
            done = await runner.run(seat.guest, case.job.workload(), [seat.device], processes=seat.processes)
            [job] = done.jobs
            done.keep(self._output / "fio" / f"round{number + 1}" / seat.peer / job.name)
            if job.wrong:
                raise GuestError(f"{job.name} on {seat.peer}: {job.wrong}")
            steadiness = stats.steadiness(job.series.iops)
            if steadiness.steady or attempt == 2:
                self._writer.run(Run.of(job, seat.peer, number, steadiness, attempt))
                return
