"""A comparison as a page, as Markdown, and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nvmuser.bench import analysis, plots, report, stats
from nvmuser.bench.analysis import Change, Ratio
from nvmuser.bench.records import Comparison
from nvmuser.bench.stats import Interval


@dataclass(frozen=True)
class _Cell:
    """One peer's numbers in one job, as text."""

    iops: str
    interval: str
    p99: str
    host: str
    guest: str
    ratio_interval: str
    unclear: str | None
    """Why there is no ratio."""
    verdict: str
    """What stands in the place of one: the ratio, or the reason in a word."""
    sure: bool
    """Whether it says that one of the two is faster."""


def _cells(comparison: Comparison) -> dict[str, dict[str, _Cell]]:
    iops = analysis.medians(comparison)
    p99 = analysis.medians(comparison, "lat_ns.p99")
    host = analysis.medians(comparison, "host_us_per_io")
    guest = analysis.medians(comparison, "guest_us_per_io")
    ratios = analysis.ratios(comparison)

    def cell(job: str, peer: str) -> _Cell:
        interval = iops[job][peer]
        ratio: Ratio | None = ratios.get(job, {}).get(peer)
        tail = p99[job].get(peer)
        return _Cell(
            iops=plots.si(interval.median),
            interval=_bounds(interval, plots.si),
            p99=plots.duration(tail.median) if tail else report.MISSING,
            host=_micros(host[job][peer].median if peer in host[job] else None),
            guest=_micros(guest[job][peer].median if peer in guest[job] else None),
            ratio_interval="" if ratio is None else _bounds(ratio.interval, "{:.2f}".format),
            unclear=ratio.unclear if ratio else None,
            verdict=verdict(ratio),
            sure=ratio is not None and ratio.unclear is None and not ratio.even,
        )

    return {job: {peer: cell(job, peer) for peer in row} for job, row in iops.items()}


def _bounds(interval: Interval, text: Callable[[float], str]) -> str:
    """A single round has no interval."""
    return f"{text(interval.low)} to {text(interval.high)}" if interval.samples > 1 else report.MISSING


def interval_name(comparison: Comparison) -> str:
    """For a heading: of what the interval is."""
    level = analysis.level(comparison)
    if level is None:
        return "range"
    return "95 %" if level >= stats.CONFIDENCE else f"range ({level * 100:.0f} %)"


def interval_words(comparison: Comparison) -> str:
    """The same for a sentence."""
    level = analysis.level(comparison)
    if level is None:
        return "range of the rounds"
    if level >= stats.CONFIDENCE:
        return "95 % interval"
    return f"range of the rounds, which holds the true median {level * 100:.0f} % of the time"


def verdict(ratio: Ratio | None) -> str:
    """A ratio in a cell, or a word for why there is none; with ≈ where it may as well be 1."""
    if ratio is None:
        return report.MISSING
    if ratio.interval.samples < analysis.MIN_ROUNDS:
        return "too few"
    if ratio.unclear:
        return "noisy"
    return f"{ratio.interval.median:.2f}{' ≈' if ratio.even else ''}"


def _micros(value: float | None) -> str:
    return report.MISSING if value is None else f"{value:.0f}"


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What was compared on what."""
    header, settings = comparison.header, comparison.header["settings"]
    environment, versions = header["environment"], header["versions"]
    accelerator = "KVM" if header["accelerator"] == "kvm" else "software emulation (TCG)"
    pages = environment["hugepages_total"] * environment["hugepage_bytes"] >> 20
    unsteady = sum(comparison.unsteady.values())
    rounds = {run.round for run in comparison.runs}
    count = len(rounds)
    method = f"{count} round{'s' * (count != 1)}, interleaved; {settings['ramp']:g} s warm-up"
    return [
        ("Host", f"{environment['cpu_model']}, {environment['cpus']} CPUs, kernel {environment['kernel']}"),
        ("Guest", f"{accelerator}, kernel {versions['guest_kernel']}"),
        ("Software", f"SPDK {versions['spdk']}, QEMU {versions['qemu']}, {versions['fio']}"),
        ("Backing", f"{settings['backing']}, {settings['size_bytes'] >> 20} MiB, every block written before"),
        ("Method", f"{method}, {settings['runtime']:g} s each"),
        ("Frequency governor", environment["governor"] or "not visible (a virtual machine, or none)"),
        ("Hugepages", f"{pages} MiB" if pages else "none: 4 KiB pages"),
        ("Noise", _noise(comparison.noise)),
        ("Steady state", f"{len(comparison.runs) - unsteady} of {len(comparison.runs)} runs"),
    ]


def _noise(noise: float | None) -> str:
    return "not measured" if noise is None else f"up to {noise * 100:.0f} % of an idle spin's time was taken away"


def _warning(comparison: Comparison) -> str | None:
    if comparison.footer is None:
        return "This comparison did not come to its end: what follows is what was measured until then."
    if busy := report.busy(comparison.noise):
        return (
            f"{busy} Ratios are taken within rounds and carry their intervals; absolute numbers need a quiet machine."
        )
    return None


def html(comparison: Comparison, title: str = "NVMe for a guest, compared") -> str:
    """The whole page."""
    intervals = {
        job: {peer: ratio.interval for peer, ratio in row.items() if ratio.interval.samples >= analysis.MIN_ROUNDS}
        for job, row in analysis.ratios(comparison).items()
    }
    peers = comparison.peers
    return report.render(
        "compare.html.j2",
        title=title,
        comparison=comparison,
        cells=_cells(comparison),
        facts=facts(comparison),
        warning=_warning(comparison),
        ours=comparison.base,
        interval=interval_name(comparison),
        interval_words=interval_words(comparison),
        ratios=plots.ratios(intervals, peers, "IOPS, ours over the peer (above 1: ours is faster)")
        if any(intervals.values())
        else None,
        medians=plots.medians(analysis.medians(comparison), peers, "IOPS, medians (logarithmic)"),
    )


def markdown(comparison: Comparison) -> str:
    """Tables for a README or an issue."""
    cells = _cells(comparison)
    peers = comparison.peers
    lines = [
        f"IOPS, median of the rounds [{interval_words(comparison)}]; in parentheses ours over the peer, "
        "≈: no difference to be seen.",
        "",
    ]
    lines.append(f"| job | {' | '.join(peers)} |")
    lines.append(f"|---|{'---:|' * len(peers)}")
    for job, row in cells.items():
        texts = [_markdown_cell(row.get(peer), peer == comparison.base) for peer in peers]
        lines.append(f"| {job} | {' | '.join(texts)} |")
    lines += ["", "Host CPU per I/O, µs:", "", f"| job | {' | '.join(peers)} |", f"|---|{'---:|' * len(peers)}"]
    for job, row in cells.items():
        texts = [row[peer].host if peer in row else report.MISSING for peer in peers]
        lines.append(f"| {job} | {' | '.join(texts)} |")
    lines += ["", *(f"- {name}: {value}" for name, value in facts(comparison))]
    lines += [f"- left out: {peer}: {reason}" for peer, reason in comparison.skipped.items()]
    if warning := _warning(comparison):
        lines += ["", f"**{warning}**"]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: _Cell | None, ours: bool) -> str:
    if cell is None:
        return report.MISSING
    if ours:
        return f"**{cell.iops}** [{cell.interval}]"
    ratio = cell.verdict if cell.unclear else f"\N{MULTIPLICATION SIGN} {cell.verdict}"
    return f"{cell.iops} [{cell.interval}] ({ratio})"


def table(comparison: Comparison) -> RenderableType:
    """Medians and ratios for a terminal: a row a job and peer."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column("job", no_wrap=True)
    result.add_column("peer", no_wrap=True)
    bounds = interval_name(comparison).replace(" (", "\n(")
    for heading in ("IOPS", bounds, "p99", "host\nµs/IO", "guest\nµs/IO", "ours /\npeer", bounds):
        result.add_column(heading, justify="right", no_wrap=True)
    for job, row in _cells(comparison).items():
        for number, (peer, cell) in enumerate(row.items()):
            ratio = Text(cell.verdict, style="yellow" if cell.unclear else "bold" if cell.sure else "")
            numbers = (cell.iops, cell.interval, cell.p99, cell.host, cell.guest)
            name = Text(job if number == 0 else "", style="bold")
            result.add_row(name, peer, *numbers, ratio, cell.ratio_interval, end_section=number == len(row) - 1)
    notes = [f"{name}: {value}" for name, value in facts(comparison)]
    notes += [f"left out: {peer}: {reason}" for peer, reason in comparison.skipped.items()]
    warning = _warning(comparison)
    return Group(result, Text("\n".join(notes), style="dim"), Text(warning or "", style="yellow"))


def diff_table(changes: list[Change], notes: list[str], metric: str) -> RenderableType:
    """Which changes are real."""
    result = Table(title=metric, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("job", "peer"):
        result.add_column(heading, no_wrap=True)
    result.add_column("new / old", justify="right")
    result.add_column("95 %", justify="right", no_wrap=True)
    result.add_column("verdict")
    for change in changes:
        interval = change.interval
        verdict = _verdict(change)
        bounds = f"{interval.low:.2f} to {interval.high:.2f}"
        result.add_row(change.job, change.peer, f"{interval.median:.2f}", bounds, verdict)
    warnings = [Text(f"not the same: {note}", style="yellow") for note in notes]
    return Group(result, *warnings)


def _verdict(change: Change) -> Text:
    if change.word is None:
        few = change.interval.samples < analysis.MIN_DIFF_ROUNDS
        return Text("too few rounds to tell" if few else "no change to be seen", style="dim")
    return Text(change.word, style="bold green" if change.better else "bold red")


def diff_json(changes: list[Change], notes: list[str], metric: str) -> dict[str, Any]:
    """The same for programs."""
    return {
        "schema": "nvmuser.bench.diff/1",
        "metric": metric,
        "changes": [
            {
                "job": change.job,
                "peer": change.peer,
                "ratio": change.interval.median,
                "ci": [change.interval.low, change.interval.high],
                "real": change.real,
                "better": change.better,
            }
            for change in changes
        ],
        "not_the_same": notes,
    }
