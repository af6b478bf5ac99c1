"""`nvmuser bench tune`: what each default costs or gains on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nvmuser.bench.rounds.variants import BASE, VARIANTS
from nvmuser.bench.scenarios import tune as tuning
from nvmuser.cli.bench_compare import measured, print_table
from nvmuser.cli.options import json_document
from nvmuser.cli.results import save

_NAMES = ", ".join(variant.name for variant in VARIANTS if variant.name != BASE)
_MORE = ", ".join(variant.name for variant in VARIANTS if not variant.usual)


@click.command()
@click.option("--variants", "chosen", default="", metavar="A,B,…", help=f"Of {_NAMES}. Default: all but {_MORE}.")
@click.option("--rounds", default=5, show_default=True, help="Below 3 no ratios; from 6 on 95 % intervals.")
@click.option("--minutes", default=18.0, show_default=True, help="Begin no round that would end later.")
@click.option("--runtime", default=1.0, show_default=True, metavar="SECONDS", help="Of each run, after half a second.")
@click.option("--resume", is_flag=True, help="Go on with what was interrupted; the other options must be the same.")
@json_document("the summary: gains.<job>.<variant>, noise, …")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/tune"),
    show_default=True,
    help="Gets runs.jsonl, summary.json, report.html, tune.md, fio/; a file system with direct I/O.",
)
def tune(chosen: str, rounds: int, minutes: float, runtime: float, resume: bool, as_json: bool, output: Path) -> None:
    """Measure what each default that we ship costs or gains here, one thing changed at a time.

    Each variant has a target and a guest of its own; they are measured in interleaved rounds like peers.

    \b
    Examples:
      nvmuser bench tune
      nvmuser bench tune --variants mapped,interrupt-mode --rounds 3
    """
    names = [name for name in chosen.split(",") if name]
    plan = tuning.TunePlan(tuning.choose(names), rounds, runtime, minutes)
    comparison = measured(
        lambda progress: tuning.tune(plan, output, progress, resume=resume),
        f"what was measured is kept: `nvmuser bench report {output}`; --resume goes on",
    )
    summary = tuning.summary(comparison)
    save(output, summary, {"tune.md": tuning.markdown(comparison), "report.html": tuning.html(comparison)})
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        print_table(tuning.table(comparison))
        click.echo(f"report: {output / 'report.html'}, as Markdown: {output / 'tune.md'}")
