"""`nvmuser bench compare`, `report` and `diff`: peers against each other, and what came out."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType

from nvmuser.bench.report import analysis, compare_page, page, records
from nvmuser.bench.report.result import Result
from nvmuser.bench.rounds import matrix, peers
from nvmuser.bench.rounds.variants import BASE
from nvmuser.bench.scenarios import compare as comparing
from nvmuser.bench.scenarios import tune
from nvmuser.cli.options import json_document, json_option
from nvmuser.cli.progress import Progress, run
from nvmuser.cli.results import save
from nvmuser.errors import UsageError
from nvmuser.model.sizes import MIB, parse_size, round_up

_WIDTH = 120


def print_table(table: RenderableType) -> None:
    """Print on stdout, as wide as the terminal, or 120 columns."""
    # A pipe has no width of its own.
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def measured(work: Callable[[Progress], Coroutine[Any, Any, records.Comparison]], kept: str) -> records.Comparison:
    """Run a comparison, with its progress on stderr.

    :param kept: printed when it is interrupted.
    """
    with Progress() as progress:
        try:
            return run(work(progress))
        except click.Abort:
            click.echo(kept, err=True)
            raise


def _peers(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    chosen = tuple(name for name in value.split(",") if name)
    if unknown := set(chosen) - set(peers.PEERS):
        raise UsageError(f"--peers {sorted(unknown)[0]}: choose among {', '.join(peers.PEERS)}")
    return chosen


@click.command()
@click.option("--full", is_flag=True, help="Also sequential and mixed, 128k, depth 8, libaio, 2 guest CPUs: hours.")
@click.option("--peers", "chosen", default="", callback=_peers, metavar="A,B,…", help=f"Of {', '.join(peers.PEERS)}.")
@click.option("--only", default="", metavar="TEXT", help="Only jobs with this in their name, such as randread or poll.")
@click.option("--rounds", default=5, show_default=True, help="Below 3 no ratios; from 6 on 95 % intervals.")
@click.option("--minutes", type=float, help="Begin no round that would end later. Default: 18, none with --full.")
@click.option("--runtime", default=2.0, show_default=True, metavar="SECONDS", help="Of each run, after 1 s of warm-up.")
@click.option("--size", default="256M", show_default=True, help="Of each disk.")
@click.option("--backing", type=click.Choice(["file", "memory"]), default="file", show_default=True)
@click.option("--resume", is_flag=True, help="Go on with what was interrupted; the other options must be the same.")
@json_document("the summary: ratios.<job>.<peer>, noise, …")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/compare"),
    show_default=True,
    help="Gets runs.jsonl, summary.json, report.html, report.md, fio/; a file system with direct I/O.",
)
def compare(
    full: bool,
    chosen: tuple[str, ...],
    only: str,
    rounds: int,
    minutes: float | None,
    runtime: float,
    size: str,
    backing: str,
    resume: bool,
    as_json: bool,
    output: Path,
) -> None:
    """Measure our controllers against QEMU's and SPDK's other transports of a guest's disk.

    The short set (4k random, depths 1 and 32, interrupts and polling) takes under 20 minutes. SPDK's vhost
    needs hugepages: as root they are reserved for the time of the run.

    \b
    Examples:
      nvmuser bench compare --output bench/mine
      nvmuser bench compare --only randread-4k-qd32 --peers endpoint,nvme --rounds 3
      nvmuser bench compare --output bench/mine --resume
    """
    timing = matrix.Timing(runtime)
    cases = [case for case in (matrix.full if full else matrix.short)(timing) if only in case.job.name]
    if not cases:
        raise UsageError(f"no job has '{only}' in its name")
    names = chosen or (peers.PEERS if full else peers.SHORT)
    limit = minutes if minutes is not None else (math.inf if full else 18.0)
    plan = comparing.ComparePlan(cases, names, rounds, _backing_size(size), backing, limit)
    comparison = measured(
        lambda progress: comparing.compare(plan, output, progress, resume=resume),
        f"what was measured is kept: `nvmuser bench report {output}`; --resume goes on",
    )
    summary = _save(comparison, output)
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        print_table(compare_page.table(comparison))
        click.echo(f"report: {output / 'report.html'}")


def _save(comparison: records.Comparison, output: Path) -> dict[str, Any]:
    """Write the summary and the reports. Returns the summary."""
    summary = analysis.summary(comparison)
    pages = {"report.html": compare_page.html(comparison), "report.md": compare_page.markdown(comparison)}
    save(output, summary, pages)
    return summary


@click.command("report")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="An HTML file to write.")
@click.option("--markdown", is_flag=True, help="Print Markdown instead.")
def report_command(results: tuple[Path, ...], output: Path | None, markdown: bool) -> None:
    """Make a report of RESULT: a result.json of `bench guest`, or what `bench compare` or `bench tune` left.

    Several comparisons with the same settings become one, their rounds put together.

    \b
    Examples:
      nvmuser bench report bench/latest -o report.html
      nvmuser bench report monday tuesday --markdown
    """
    single = [path for path in results if path.name == "result.json" or (path / "result.json").is_file()]
    if single and (len(results) > 1 or markdown):
        raise UsageError("a result of `bench guest` has a page of its own: give it alone, without --markdown")
    if single:
        if output is None:
            raise UsageError("give the page's file: -o report.html")
        _write(output, page.html(Result.read(single[0] if single[0].is_file() else single[0] / "result.json")))
        return
    comparison = records.merge([records.read(path) for path in results])
    tuned = comparison.base == BASE
    if markdown:
        click.echo((tune.markdown if tuned else compare_page.markdown)(comparison), nl=False)
    elif output is None:
        print_table((tune.table if tuned else compare_page.table)(comparison))
    if output is not None:
        _write(output, (tune.html if tuned else compare_page.html)(comparison))


def _write(output: Path, page: str) -> None:
    output.write_text(page, encoding="utf-8")
    click.echo(f"report: {output}", err=True)


@click.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--metric", default="iops", show_default=True, metavar="NAME", help=f"Of {', '.join(analysis.METRICS)}.")
@json_option
def diff(old: Path, new: Path, metric: str, as_json: bool) -> None:
    """Show which changes between two comparisons are real: their 95 % interval leaves "no change" out.

    Only with at least 5 rounds on each side. Where peers that are not ours moved together, the machine changed:
    --metric ratio compares ours over each peer, from which that divides out.

    \b
    Examples:
      nvmuser bench diff bench/before bench/latest
      nvmuser bench diff bench/before bench/latest --metric lat_ns.p99
    """
    if metric not in analysis.METRICS:
        raise UsageError(f"--metric {metric}: choose among {', '.join(analysis.METRICS)}")
    before, after = records.read(old), records.read(new)
    changes = analysis.changes(before, after, metric)
    notes = analysis.environment_differences(before.header, after.header)
    if not changes:
        raise UsageError("the two have no job on the same peer in common")
    if as_json:
        click.echo(json.dumps(compare_page.diff_json(changes, notes, metric), indent=1))
    else:
        print_table(compare_page.diff_table(changes, notes, metric))


def _backing_size(text: str) -> int:
    """Bytes, in whole MiB."""
    if not (size := parse_size(text)):
        raise UsageError(f"--size {text}: give the size of the disks, such as 1G")
    return round_up(size, MIB)
