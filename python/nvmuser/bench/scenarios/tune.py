"""What each default of ours costs or gains on this machine: the same rounds as `compare`, over variants.

Owns the choice of jobs, the files, and the table. `variants` has the variants, `session` runs
the rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nvmuser.bench.measure.disks import fill, output_directory
from nvmuser.bench.measure.hugepage_loan import borrowed_hugepages
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.report import analysis, page, plots, records
from nvmuser.bench.report.analysis import Ratio
from nvmuser.bench.report.compare_page import UNSTEADY, cpu_note, facts, interval_words, verdict, warning
from nvmuser.bench.report.records import Comparison
from nvmuser.bench.rounds import matrix, session
from nvmuser.bench.rounds.variants import BASE, GUEST_MEMORY, VARIANTS, Variant, open_variant
from nvmuser.errors import UsageError
from nvmuser.supervisor.spdk import MEMORY_MIB
from nvmuser.toolchain import find_appliance, find_qemu, find_spdk

SIZE = 128 << 20
_WRITES = "randwrite-4k-qd32-irq"
_HOST_CPU = ("randread-4k-qd1-irq", "randread-4k-qd32-irq")
"""Jobs whose host CPU is in the table: with interrupts, so that both sides are not only spinning."""


@dataclass(frozen=True)
class TunePlan:
    """Which variants, how thoroughly."""

    variants: Sequence[Variant]
    rounds: int = 5
    runtime: float = 1.0
    minutes: float = math.inf

    @property
    def session(self) -> session.SessionPlan:
        """4k random reads at both depths, with interrupts and polling, and writes where interrupts matter most.

        There are many variants: rather more rounds than repeated runs.
        """
        timing = matrix.Timing(self.runtime, ramp=0.5)
        cases = [case for case in matrix.short(timing) if case.job.rw == "randread" or case.job.name == _WRITES]
        names = [variant.name for variant in self.variants]
        what = {variant.name: variant.what for variant in self.variants}
        settings = {"size_bytes": SIZE, "backing": "file", "variants": what}
        return session.SessionPlan(cases, names, BASE, self.rounds, self.minutes, attempts=1, settings=settings)

    @property
    def memory(self) -> int:
        """Of all guests and targets: each variant has one of both."""
        return len(self.variants) * (GUEST_MEMORY + (MEMORY_MIB << 20))


def choose(names: Sequence[str]) -> list[Variant]:
    """Variants by name, and the base that they are measured against; none names the usual ones.

    :raises UsageError: there is no such variant.
    """
    known = {variant.name: variant for variant in VARIANTS}
    if unknown := set(names) - known.keys():
        raise UsageError(f"no variant is called '{sorted(unknown)[0]}': choose among {', '.join(known)}")
    wanted = {BASE, *names} if names else {variant.name for variant in VARIANTS if variant.usual}
    return [variant for variant in VARIANTS if variant.name in wanted]


async def tune(plan: TunePlan, output: Path, progress: Progress, *, resume: bool = False) -> Comparison:
    """Run the plan; results are in `output` as they come.

    :raises NvmuserError: what we ship cannot run; a variant that cannot is left out, and the records say why.
    """
    find_spdk(), find_qemu(), find_appliance()  # before minutes are spent on files and noise
    output_directory(output)
    rounds = plan.session.with_files_on(output)
    earlier = records.interrupted(output) if resume else None
    async with _files(plan, output, progress) as (disks, sockets):
        variants = {variant.name: variant for variant in plan.variants}

        def opener(name: str, cpus: int) -> contextlib.AbstractAsyncContextManager[Any]:
            return open_variant(variants[name], cpus, disks / name, sockets / name, hugepages=lacking is None)

        with borrowed_hugepages(plan.memory) as lacking, records.Writer(output / records.FILE, append=resume) as writer:
            await session.Session(rounds, opener, output, writer, progress, earlier).run()
    return records.read(output)


@contextlib.asynccontextmanager
async def _files(plan: TunePlan, output: Path, progress: Progress) -> AsyncIterator[tuple[Path, Path]]:
    disks = tempfile.TemporaryDirectory(dir=output, prefix="disks-")
    with disks, scratch("nvmuser-tune-") as sockets:
        progress.step("writing the disks' files")
        for variant in plan.variants:
            await asyncio.to_thread(fill, Path(disks.name) / variant.name, SIZE)
        yield Path(disks.name), sockets


def summary(comparison: Comparison) -> dict[str, Any]:
    """`gains.<job>.<variant>`: IOPS with it over IOPS as shipped, null where that is unclear; and what it costs."""
    iops, cpu = _tables(comparison)

    def number(ratio: Ratio) -> float | None:
        return None if ratio.unclear else round(ratio.interval.median, 4)

    return {
        "schema": "nvmuser.bench.tune/1",
        "gains": {job: {name: number(ratio) for name, ratio in row.items()} for job, row in iops.items()},
        "gains_ci": {
            job: {name: [round(ratio.interval.low, 4), round(ratio.interval.high, 4)] for name, ratio in row.items()}
            for job, row in iops.items()
        },
        "ci_level": analysis.level(comparison),
        "host_cpu": {job: {name: number(ratio) for name, ratio in row.items()} for job, row in cpu.items()},
        "default_iops": {job: row[BASE].median for job, row in analysis.medians(comparison).items()},
        "noise": comparison.noise,
        "skipped": comparison.skipped,
        "complete": comparison.footer is not None,
        **{key: comparison.header[key] for key in ("created", "accelerator", "versions", "environment", "settings")},
    }


_Ratios = dict[str, dict[str, Ratio]]


def _tables(comparison: Comparison) -> tuple[_Ratios, _Ratios]:
    return (
        analysis.ratios(comparison, inverse=True),
        analysis.ratios(comparison, "host_us_per_io", inverse=True),
    )


@dataclass(frozen=True)
class _Row:
    name: str
    what: str
    cells: list[str]


def _rows(comparison: Comparison) -> list[_Row]:
    """The base's IOPS first, then each variant's ratios with it: IOPS of each job, host CPU of some."""
    iops, cpu = _tables(comparison)
    medians = analysis.medians(comparison)
    what = comparison.header["settings"]["variants"]
    marks = {
        job: {name: UNSTEADY if found.mostly else "" for name, found in row.items()}
        for job, row in analysis.unsteady(comparison).items()
    }
    base = [f"{plots.si(medians[job][BASE].median)} IOPS{marks[job][BASE]}" for job in comparison.jobs]
    rows = [_Row(BASE, what[BASE], base)]
    for name in comparison.peers:
        if name != BASE:
            cells = [verdict(iops.get(job, {}).get(name)) + marks[job].get(name, "") for job in comparison.jobs]
            rows.append(_Row(name, what[name], cells))
    for job in _host_jobs(comparison):
        rows[0].cells.append("1")
        for row in rows[1:]:
            row.cells.append(verdict(cpu.get(job, {}).get(row.name)))
    return rows


def _host_jobs(comparison: Comparison) -> list[str]:
    return [job for job in comparison.jobs if job in _HOST_CPU]


def _heads(comparison: Comparison) -> list[str]:
    return [*comparison.jobs, *(f"host CPU per I/O, {job}" for job in _host_jobs(comparison))]


def _legend(comparison: Comparison) -> str:
    what = "With the variant over as shipped, IOPS and host CPU: median of the rounds"
    return f"{what}; ≈: no difference to be seen, 1 lies in the {interval_words(comparison)}."


def markdown(comparison: Comparison) -> str:
    """The table for the documentation."""
    heads = _heads(comparison)
    lines = [_legend(comparison), "", f"| variant | | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(heads)}"]
    lines += [f"| {row.name} | {row.what} | {' | '.join(row.cells)} |" for row in _rows(comparison)]
    lines += ["", *_notes(comparison)]
    if caution := warning(comparison):
        lines += ["", f"**{caution}**"]
    return "\n".join(lines) + "\n"


def html(comparison: Comparison, title: str = "What each default costs or gains") -> str:
    """The same as a page, with a plot: a group a variant, a mark a job."""
    gains = analysis.ratios(comparison, inverse=True)
    intervals = {
        name: {
            job: row[name].interval
            for job, row in gains.items()
            if name in row and row[name].interval.samples >= analysis.MIN_ROUNDS
        }
        for name in comparison.peers
        if name != BASE
    }
    drawn = {name: row for name, row in intervals.items() if row}
    return page.render(
        "tune.html.j2",
        title=title,
        comparison=comparison,
        warning=warning(comparison),
        figures=plots.ratios(drawn, comparison.jobs, "IOPS with the variant over IOPS as shipped"),
        heads=_heads(comparison),
        rows=_rows(comparison),
        legend=_legend(comparison),
        cpu_note=cpu_note(comparison),
        facts=facts(comparison),
    )


def _notes(comparison: Comparison) -> list[str]:
    notes = [f"- {cpu_note(comparison)}", *(f"- {name}: {value}" for name, value in facts(comparison))]
    notes += [f"- left out: {name}: {reason}" for name, reason in comparison.skipped.items()]
    if note := page.restless(comparison.noise):
        notes.append(f"- {note}")
    return notes


def table(comparison: Comparison) -> RenderableType:
    """The same for a terminal."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column("variant", no_wrap=True)
    for heading in _heads(comparison):
        # In lines of its own choice: cut to one length, names of jobs are all alike.
        lines = heading.replace("-4k-", "-4k-\n").replace(" per I/O, ", "\nper I/O,\n")
        result.add_column(lines, justify="right", no_wrap=True)
    for row in _rows(comparison):
        result.add_row(Text(row.name, style="bold"), *row.cells)
    notes = Text("\n".join([_legend(comparison), *_notes(comparison)]), style="dim")
    return Group(result, notes, Text(warning(comparison) or "", style="yellow"))
