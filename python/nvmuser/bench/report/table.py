"""The same results for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nvmuser.bench.report import page, plots
from nvmuser.bench.report.result import JobResult, Result


def _percent(value: float | None) -> str:
    return page.MISSING if value is None else f"{value:.0f}%"


def _time(value: float) -> str:
    return page.MISSING if value != value else plots.duration(value).replace(" ", "")


def _verdict(job: JobResult) -> Text:
    if job.wrong:
        return Text(job.wrong, style="bold red")
    if job.verified_blocks:
        return Text(f"{job.verified_blocks:,} ✓", style="green")
    return Text(page.MISSING)


def result(result: Result) -> RenderableType:
    """A row a job, and under it what it was measured on."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("job", no_wrap=True, overflow="fold")
    for heading in ("IOPS", "MiB/s", "mean", "p50", "p99", "p99.9", "guest\nCPU", "host\nCPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("blocks\nverified", no_wrap=True, overflow="fold")
    for job in result.jobs:
        lat = job.lat_ns
        host = sum(job.cpu.host_percent.values()) if job.cpu.host_percent else None
        table.add_row(
            Text(job.name, style="bold"),
            Text(plots.si(job.iops), style="bold"),
            f"{job.bw_bytes / (1 << 20):.1f}",
            *(_time(value) for value in (lat.mean, lat.p50, lat.p99, lat.p99_9)),
            _percent(job.cpu.guest_percent),
            _percent(host),
            _verdict(job),
        )
    facts = dict(page.facts(result))
    notes = Text("\n".join(f"{name}: {facts[name]}" for name in ("Guest", "Software", "Host", "Noise")), style="dim")
    warning = page.busy(result.environment.get("noise"))
    return Group(table, notes, *([Text(warning, style="yellow")] if warning else []))
