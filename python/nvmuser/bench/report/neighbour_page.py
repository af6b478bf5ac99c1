"""What a reader saw beside its neighbours: a table for a terminal and for Markdown, and a page."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nvmuser.bench.measure.environment import describe
from nvmuser.bench.measure.stats import Interval
from nvmuser.bench.report import page, plots
from nvmuser.bench.scenarios.neighbour import BASE, BESIDE, NeighbourResult

_HEADS = ("ratio", "interval", "IOPS", "p99.9", "longest", "it took", "no CPU")
_LEGEND = (
    "4k random reads at depth 1, one core of a target. Ratio: IOPS over those beside a writer, median of the rounds. "
    "No CPU: the share of the time in which the clients' loop, and the target, waited for one; IOPS are without the "
    "former."
)


def _rows(result: NeighbourResult) -> list[tuple[str, str, list[str]]]:
    """Name, words, and cells of each thing beside the reader."""
    found = result.to_json()
    rows = []
    for name, ratio in found["ratio"].items():
        low, high = found["ratio_ci"][name]
        took = found["act_s"].get(name)
        cells = [
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            plots.si(found["iops"][name]),
            plots.duration(found["p99_9_us"][name] * 1e3),
            plots.duration(found["max_us"][name] * 1e3),
            page.MISSING if took is None else plots.duration(took * 1e9),
            f"{found['client_waited'][name] * 100:.0f} %, {found['target_waited'][name] * 100:.0f} %",
        ]
        rows.append((name, BESIDE[name].what, cells))
    return rows


def _facts(result: NeighbourResult) -> list[tuple[str, str]]:
    found = result.to_json()
    plan = result.plan
    memory = "the reader's and the one written in memory, " if plan.memory else ""
    rounds = f"{plan.rounds} round{'s' * (plan.rounds != 1)}, interleaved"
    return [
        ("Host", describe(found["environment"])),
        ("Software", f"SPDK {found['versions']['spdk']}"),
        ("Volumes", f"{memory}files on {found['file_system'] or 'an unknown file system'}, every block written before"),
        ("Method", f"{rounds}; {plan.runtime:g} s each, or as long as what happens takes; one loop for both clients"),
        *(
            []
            if result.fairness is None
            else [("Fairness", f"{result.fairness:.2f}: beside a deep queue over a shallow one")]
        ),
        ("Noise", f"{found['noise'] * 100:.0f} % of an idle spin's time was taken away"),
    ]


def markdown(result: NeighbourResult) -> str:
    """The table for the documentation."""
    lines = [_LEGEND, "", f"| beside | | {' | '.join(_HEADS)} |", f"|---|---|{'---:|' * len(_HEADS)}"]
    lines += [f"| {name} | {what} | {' | '.join(cells)} |" for name, what, cells in _rows(result)]
    lines += ["", *(f"- {name}: {value}" for name, value in _facts(result))]
    if warning := page.busy(result.noise):
        lines += ["", f"**{warning}**"]
    return "\n".join(lines) + "\n"


def table(result: NeighbourResult) -> RenderableType:
    """The same for a terminal."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("beside", no_wrap=True)
    shown.add_column("")
    for head in _HEADS:
        shown.add_column(head, justify="right", no_wrap=True)
    for name, what, cells in _rows(result):
        shown.add_row(Text(name, style="bold"), what, *cells)
    notes = "\n".join([_LEGEND, *(f"{name}: {value}" for name, value in _facts(result))])
    return Group(shown, Text(notes, style="dim"), Text(page.busy(result.noise) or "", style="yellow"))


def html(result: NeighbourResult, title: str = "What a guest notices of its neighbours") -> str:
    """The same as a page, with a plot of the ratios."""
    drawn: dict[str, dict[str, Interval]] = {name: {name: result.ratio(name)} for name in result.seen if name != BASE}
    context: dict[str, Any] = {"heads": _HEADS, "rows": _rows(result), "legend": _LEGEND, "facts": _facts(result)}
    return page.render(
        "neighbour.html.j2",
        title=title,
        created=result.to_json()["created"],
        warning=page.busy(result.noise),
        figures=plots.ratios(drawn, list(drawn), "Reads a second over those beside a writer") if drawn else [],
        **context,
    )
