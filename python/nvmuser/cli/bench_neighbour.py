"""`nvmuser bench neighbour`: what a guest notices of the others on its core of the target."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nvmuser.bench.measure.disks import output_directory
from nvmuser.bench.report import neighbour_page
from nvmuser.bench.scenarios.neighbour import BASE, BESIDE, NeighbourPlan, measure
from nvmuser.cli.bench_compare import print_table
from nvmuser.cli.options import json_document
from nvmuser.cli.progress import Progress, run
from nvmuser.cli.results import save
from nvmuser.errors import UsageError
from nvmuser.toolchain import find_spdk


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    chosen = tuple(name for name in value.split(",") if name)
    if unknown := set(chosen) - set(BESIDE):
        raise UsageError(f"--only {sorted(unknown)[0]}: choose among {', '.join(BESIDE)}")
    return chosen or tuple(BESIDE)


@click.command("neighbour")
@click.option("--only", callback=_names, default="", metavar="A,B,…", help=f"Of {', '.join(BESIDE)}; always {BASE}.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="From 6 on 95 % intervals.")
@click.option(
    "--runtime", type=click.FloatRange(0.1, 600), default=1.0, show_default=True, metavar="SECONDS", help="Of each run."
)
@click.option(
    "--backing",
    type=click.Choice(["file", "memory"]),
    default="file",
    show_default=True,
    help="Of the reader's volume and the one written: memory shows the target's part without the disk's.",
)
@json_document("ratio.<beside>, iops.<beside>, p99_9_us.<beside>, …")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/neighbour"),
    show_default=True,
    help="Gets summary.json, report.html, report.md, and for the time being 1 GiB of volumes: a file system with "
    "direct I/O.",
)
def neighbour_command(
    only: tuple[str, ...], rounds: int, runtime: float, backing: str, as_json: bool, output: Path
) -> None:
    """A reader (4k, depth 1) beside a neighbour on the same core of the target, without a guest.

    The neighbour writes; it flushes, discards or zeroes what it has written; meanwhile a namespace is attached and
    detached, a snapshot made, another client killed and one put in its place, a controller created; it reads 128k at
    depth 256, which the reader is to notice as little as depth 8. Each is measured
    once a round; `ratio` is the reader's IOPS over those beside one that only writes. Everything is private and
    temporary. One CPU for the target, one for both clients.

    \b
    Examples:
      nvmuser bench neighbour
      nvmuser bench neighbour --only flush,discard --rounds 6 --json
      nvmuser bench neighbour --only bulk,bulk_shallow --backing memory
    """
    find_spdk()  # before anything is made
    output_directory(output)
    with Progress() as progress:
        result = run(measure(NeighbourPlan(only, rounds, runtime, backing == "memory"), output, progress))
        progress.step("done")
    summary = result.to_json()
    save(output, summary, {"report.md": neighbour_page.markdown(result), "report.html": neighbour_page.html(result)})
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        print_table(neighbour_page.table(result))
        click.echo(f"report: {output / 'report.html'}, as Markdown: {output / 'report.md'}")
