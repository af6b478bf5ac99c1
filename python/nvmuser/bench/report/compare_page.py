"""A comparison as a page, as Markdown, and as a table for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nvmuser.bench.measure import stats
from nvmuser.bench.measure.environment import describe
from nvmuser.bench.measure.stats import Interval
from nvmuser.bench.report import analysis, page, plots
from nvmuser.bench.report.analysis import Difference, Ratio
from nvmuser.bench.report.records import Comparison, hugepages_used

UNSTEADY = "\N{DAGGER}"
"""Stands behind the IOPS of what was not in a steady state in at least half of its rounds."""


@dataclass(frozen=True)
class _Cell:
    """One peer's numbers in one job, as text."""

    iops: str
    interval: str
    bandwidth: str
    """In MiB/s."""
    p50: str
    p99: str
    p99_9: str
    p99_verdict: str
    """Of the latency: ours over the peer's."""
    p99_sure: bool
    host: str
    guest: str
    ratio_interval: str
    unclear: str | None
    """Why there is no ratio."""
    verdict: str
    """What stands in the place of one: the ratio, or the reason in a word."""
    sure: bool
    """Whether one of the two is faster."""


def _cells(comparison: Comparison) -> dict[str, dict[str, _Cell]]:
    iops = analysis.medians(comparison)
    names = ("bw_bytes", "lat_ns.p50", "lat_ns.p99", "lat_ns.p99_9", "host_us_per_io", "guest_us_per_io")
    others = {name: analysis.medians(comparison, name) for name in names}
    restless = analysis.unsteady(comparison)
    ratios, latency_ratios = analysis.ratios(comparison), analysis.ratios(comparison, "lat_ns.p99")

    def cell(job: str, peer: str) -> _Cell:
        interval = iops[job][peer]
        ratio: Ratio | None = ratios.get(job, {}).get(peer)
        latency_ratio = latency_ratios.get(job, {}).get(peer)

        def other(name: str, text: Callable[[float], str]) -> str:
            found = others[name][job].get(peer)
            return text(found.median) if found else page.MISSING

        return _Cell(
            iops=plots.si(interval.median) + (UNSTEADY if restless[job][peer].mostly else ""),
            interval=_bounds(interval, plots.si),
            bandwidth=other("bw_bytes", _mib),
            p50=other("lat_ns.p50", plots.duration),
            p99=other("lat_ns.p99", plots.duration),
            p99_9=other("lat_ns.p99_9", plots.duration),
            p99_verdict=verdict(latency_ratio),
            p99_sure=_sure(latency_ratio),
            host=other("host_us_per_io", "{:.0f}".format),
            guest=other("guest_us_per_io", "{:.0f}".format),
            ratio_interval="" if ratio is None else _bounds(ratio.interval, "{:.2f}".format),
            unclear=ratio.unclear if ratio else None,
            verdict=verdict(ratio),
            sure=_sure(ratio),
        )

    return {job: {peer: cell(job, peer) for peer in row} for job, row in iops.items()}


def _bounds(interval: Interval, text: Callable[[float], str]) -> str:
    """A single round has no interval."""
    return f"{text(interval.low)}\N{EN DASH}{text(interval.high)}" if interval.samples > 1 else page.MISSING


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
        return page.MISSING
    if ratio.word:
        return ratio.word
    return f"{ratio.interval.median:.2f}{' ≈' if ratio.even else ''}"


def _sure(ratio: Ratio | None) -> bool:
    return ratio is not None and ratio.unclear is None and not ratio.even


def _mib(bytes_per_second: float) -> str:
    mib = bytes_per_second / (1 << 20)
    return f"{mib:.0f}" if mib >= 100 else f"{mib:.1f}"


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What was compared on what."""
    header, settings = comparison.header, comparison.header["settings"]
    environment, versions = header["environment"], header["versions"]
    accelerator = "KVM" if header["accelerator"] == "kvm" else "software emulation (TCG)"
    rounds = {run.round for run in comparison.runs}
    count = len(rounds)
    method = f"{count} round{'s' * (count != 1)}, interleaved; {settings['ramp']:g} s warm-up"
    return [
        ("Host", describe(environment)),
        ("Guest", f"{accelerator}, kernel {versions['guest_kernel']}"),
        ("Software", f"SPDK {versions['spdk']}, QEMU {versions['qemu']}, {versions['fio']}"),
        ("Backing", f"{settings['backing']}, {settings['size_bytes'] >> 20} MiB, every block written before"),
        ("Method", f"{method}, {settings['runtime']:g} s each"),
        ("Frequency governor", environment["governor"] or "not visible (a virtual machine, or none)"),
        ("Hugepages", hugepages_used(header)),
        ("Noise", _noise(comparison.noise)),
        ("Steady state", _steady(comparison)),
    ]


def _steady(comparison: Comparison) -> str:
    """How many runs were, and whose were not."""
    unsteady: Counter[str] = Counter(run.peer for run in comparison.runs if not run.steady)
    runs = Counter(run.peer for run in comparison.runs)
    text = f"{len(comparison.runs) - unsteady.total()} of {len(comparison.runs)} runs"
    if not unsteady:
        return text
    peers = ", ".join(f"{peer} {unsteady[peer]} of {runs[peer]}" for peer in comparison.peers if unsteady[peer])
    return f"{text}; not: {peers}; {UNSTEADY} marks where it was at least half of the rounds"


def cpu_note(comparison: Comparison) -> str:
    """What a reader of CPU per I/O has to know."""
    own = (
        " and, under software emulation, all of the guest's own CPU"
        if comparison.header["accelerator"] == "tcg"
        else ""
    )
    return (
        f"Host CPU per I/O contains a reactor of SPDK that always spins{own}. Guest CPU per I/O of polled jobs is "
        "mostly 1 / IOPS: the guest does nothing else but ask."
    )


def _noise(noise: float | None) -> str:
    return "not measured" if noise is None else f"up to {noise * 100:.0f} % of an idle spin's time was taken away"


def warning(comparison: Comparison) -> str | None:
    """What a reader must know before anything else."""
    if comparison.footer is None:
        return "This comparison did not come to its end: what follows is what was measured until then."
    if busy := page.busy(comparison.noise):
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
    return page.render(
        "compare.html.j2",
        title=title,
        comparison=comparison,
        cells=_cells(comparison),
        facts=facts(comparison),
        warning=warning(comparison),
        cpu_note=cpu_note(comparison),
        ours=comparison.base,
        interval=interval_name(comparison),
        interval_words=interval_words(comparison),
        ratios=plots.ratios(intervals, peers, "IOPS, ours over the peer (above 1: ours is faster)")
        if any(intervals.values())
        else [],
        medians=plots.medians(analysis.medians(comparison), peers, "IOPS, medians (logarithmic)"),
    )


def markdown(comparison: Comparison) -> str:
    """Tables for a README or an issue."""
    cells = _cells(comparison)
    peers = comparison.peers

    def rows(jobs: Sequence[str], text: Callable[[str, _Cell], str]) -> list[str]:
        head = ["", f"| job | {' | '.join(peers)} |", f"|---|{'---:|' * len(peers)}"]
        texts = {job: [text(peer, row[peer]) if (row := cells[job]).get(peer) else page.MISSING for peer in peers]
                 for job in jobs}  # fmt: skip
        return head + [f"| {job} | {' | '.join(row)} |" for job, row in texts.items()]

    def iops(peer: str, cell: _Cell) -> str:
        if peer == comparison.base:
            return f"**{cell.iops}** [{cell.interval}]"
        unclear = f"{cell.verdict}: {cell.ratio_interval}"
        ratio = unclear if cell.unclear else f"\N{MULTIPLICATION SIGN} {cell.verdict}"
        return f"{cell.iops} [{cell.interval}] ({ratio})"

    def latency(peer: str, cell: _Cell) -> str:
        ratio = "" if peer == comparison.base else f" ({cell.p99_verdict})"
        return f"{cell.p50} / {cell.p99}{ratio} / {cell.p99_9}"

    lines = [
        f"IOPS, median of the rounds [{interval_words(comparison)}]; in parentheses ours over the peer, "
        "≈: no difference to be seen.",
    ]
    jobs = list(cells)
    lines += rows(jobs, iops)
    if large := _large(comparison):
        lines += ["", "MiB/s:", *rows(large, lambda _, cell: cell.bandwidth)]
    lines += ["", "Latency, p50 / p99 (ours over the peer: below 1 ours is sooner) / p99.9:", *rows(jobs, latency)]
    lines += ["", "CPU per I/O, µs, host / guest:", *rows(jobs, lambda _, cell: f"{cell.host} / {cell.guest}")]
    lines += ["", cpu_note(comparison)]
    lines += ["", *(f"- {name}: {value}" for name, value in facts(comparison))]
    lines += [f"- left out: {peer}: {reason}" for peer, reason in comparison.skipped.items()]
    if caution := warning(comparison):
        lines += ["", f"**{caution}**"]
    return "\n".join(lines) + "\n"


def _large(comparison: Comparison) -> list[str]:
    """Jobs with more than 4 KiB an I/O, whose IOPS alone mean little."""
    block = {run.job: run.bw_bytes / run.iops for run in comparison.runs if run.iops > 0}
    return [job for job in comparison.jobs if block.get(job, 0) > 4096 * 1.01]


def table(comparison: Comparison) -> RenderableType:
    """Medians and ratios for a terminal: a row a job and peer, under the job's name."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    result.add_column("job\n  peer", no_wrap=True)
    bounds = interval_name(comparison).replace(" (", "\n(")
    latency = ("p50", "p99", "p99.9")
    for heading in ("IOPS", bounds, "ours /\npeer", bounds, "MiB/s", *latency, "host\nµs/IO", "guest\nµs/IO"):
        result.add_column(heading, justify="right", no_wrap=True)
    for job, row in _cells(comparison).items():
        result.add_row(Text(job, style="bold"))
        for number, (peer, cell) in enumerate(row.items()):
            ratio = Text(cell.verdict, style="yellow" if cell.unclear else "bold" if cell.sure else "")
            rest = (cell.bandwidth, *_latency(cell), cell.host, cell.guest)
            last = number == len(row) - 1
            result.add_row(f"  {peer}", cell.iops, cell.interval, ratio, cell.ratio_interval, *rest, end_section=last)
    notes = [cpu_note(comparison), *(f"{name}: {value}" for name, value in facts(comparison))]
    notes += [f"left out: {peer}: {reason}" for peer, reason in comparison.skipped.items()]
    return Group(result, Text("\n".join(notes), style="dim"), Text(warning(comparison) or "", style="yellow"))


def _latency(cell: _Cell) -> list[str]:
    return [text.replace(" ", "") for text in (cell.p50, cell.p99, cell.p99_9)]


def diff_table(changes: list[Difference], notes: list[str], metric: str) -> RenderableType:
    """Which changes are real."""
    result = Table(title=metric, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("job", "peer"):
        result.add_column(heading, no_wrap=True)
    result.add_column("new / old", justify="right")
    enough = all(change.interval.samples >= analysis.MIN_DIFF_ROUNDS for change in changes)
    result.add_column("95 %" if enough else "interval", justify="right", no_wrap=True)
    result.add_column("verdict")
    for change in changes:
        interval = change.interval
        verdict = _verdict(change)
        bounds = f"{interval.low:.2f} to {interval.high:.2f}"
        result.add_row(change.job, change.peer, f"{interval.median:.2f}", bounds, verdict)
    warnings = [Text(f"not the same: {note}", style="yellow") for note in notes]
    if moved := analysis.machine_changes(changes):
        jobs = ", ".join(f"{job} {word}" for job, word in moved.items())
        text = f"the machine changed: peers that are not ours moved together ({jobs}); see --metric ratio"
        warnings.append(Text(text, style="yellow"))
    return Group(result, *warnings)


def _verdict(change: Difference) -> Text:
    if change.word is None:
        few = change.interval.samples < analysis.MIN_DIFF_ROUNDS
        return Text("too few rounds to tell" if few else "no change to be seen", style="dim")
    return Text(change.word, style="bold green" if change.better else "bold red")


def diff_json(changes: list[Difference], notes: list[str], metric: str) -> dict[str, Any]:
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
        "machine_changed": analysis.machine_changes(changes),
        "not_the_same": notes,
    }
