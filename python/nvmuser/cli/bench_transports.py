"""`nvmuser bench guest --via libvfio,native`: the two transports, compared."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nvmuser.bench.measure import stats
from nvmuser.bench.measure.fio import Job
from nvmuser.bench.report.plots import si
from nvmuser.bench.scenarios import transports
from nvmuser.cli.progress import Progress, run


def compare(job: Job, output: Path, *, rounds: int, cpus: int, as_json: bool) -> None:
    """Measure, and print the comparison."""
    with Progress() as progress:
        comparison = run(transports.compare(job, output, progress, rounds=rounds, cpus=cpus))
        progress.step("done")
    document = comparison.to_json()
    (output / "transports.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    for transport in transports.TRANSPORTS:
        each = "  ".join(f"{si(value):>6}" for value in comparison.series(transport))
        iops, p99_ms = si(document["iops"][transport]), document["lat_ns_p99"][transport] / 1e6
        click.echo(f"{transport:8} {iops:>6} IOPS, p99 {p99_ms:.2f} ms  {each}")
    low, high = document["ratio_ci"]
    sure = stats.level(document["rounds"]) * 100
    note = f"; {comparison.unclear}" if comparison.unclear else ""
    click.echo(f"libvfio / native: {document['ratio']:.3f}, {sure:.0f} % between {low:.3f} and {high:.3f}{note}")
    click.echo(f"result: {output / 'transports.json'}")
