"""`nvmuser bench scale`: how cost grows with the number of controllers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nvmuser.bench.measure.disks import output_directory
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.report import scale_page
from nvmuser.bench.report.result import null_for_nan
from nvmuser.bench.scenarios import scale as scenario
from nvmuser.cli.options import json_document
from nvmuser.cli.progress import Progress, run
from nvmuser.cli.results import save
from nvmuser.errors import UsageError

_DEFAULTS = "; ".join(f"{name} {','.join(map(str, part.counts))}" for name, part in scenario.PARTS.items())


def _counts(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    words = [word for word in value.split(",") if word]
    if not all(word.isdigit() and int(word) for word in words):
        raise UsageError(f"--counts {value}: numbers with commas between them, such as 100,500")
    return tuple(map(int, words))


@click.command()
@click.option(
    "--only",
    type=click.Choice(list(scenario.PARTS)),
    multiple=True,
    help="This part alone. May be repeated.",
)
@click.option("--counts", default="", callback=_counts, metavar="N,N,…", help=f"How many. Default: {_DEFAULTS}.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Of each; medians are kept.")
@json_document("busy.<N>.…, recovery.<N>.…, guests.<N>.…, control.<N>.…, slope.<figure>, as in result.json")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("out/scale"),
    show_default=True,
    help="Gets result.json and report.html.",
)
def scale(only: tuple[str, ...], counts: tuple[int, ...], rounds: int, as_json: bool, output: Path) -> None:
    """Measure how cost grows with the number of controllers.

    \b
    busy:     controllers connected by one host client, one of them busy, then all: IOPS of the target's one core.
    recovery: clients that act as Linux's driver does, the target killed, with a standby: the longest I/O of each.
    guests:   the same with real guests, in which fio writes and verifies.
    control:  with null volumes: made, looked at (`nvmuser status`), applied again (`nvmuser apply`), restored after
              the target was killed; memory of target, endpoint and supervisor.

    Everything is private and temporary but for the results.

    \b
    Examples:
      nvmuser bench scale
      nvmuser bench scale --only control --counts 100,1000 --rounds 1 --json
    """
    wanted = scenario.plan(only, counts)
    output_directory(output)
    with scratch("nvmuser-") as root, Progress() as progress:
        document = null_for_nan(run(scenario.measure(root, wanted, rounds, progress)))
        progress.step("done")
    save(output, document, {"report.html": scale_page.html(document)}, name="result.json")
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(f"{scale_page.text(document)}\n\nreport: {output / 'report.html'}\nresult: {output / 'result.json'}")
