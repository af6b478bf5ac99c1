"""Plots as SVG text, to stand inside a page: IOPS and latency over time, latency percentiles, ratios with
error bars.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; line style and marker repeat what the
colour says, so that a grey print does too. Text stays text (no outlines), drawn in the reader's own
sans-serif.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from nvmuser.bench.measure.stats import Interval
from nvmuser.bench.report.result import JobResult

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
MARKERS = "osD^vPX*"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nvmuser",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#30343b",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "xtick.color": "#565b64",
    "ytick.color": "#565b64",
    "legend.frameon": False,
}


def si(value: float) -> str:
    """1234567 → 1.23M: three significant digits."""
    for limit, divisor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.3g}"


def duration(nanoseconds: float) -> str:
    """1234567 → 1.23 ms."""
    for limit, divisor, unit in ((1e9, 1e9, "s"), (1e6, 1e6, "ms"), (1e3, 1e3, "µs")):
        if abs(nanoseconds) >= limit * 0.9995:
            return f"{nanoseconds / divisor:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


def svg_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, to be drawn as SVG."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element: no prologue with its public URL, no metadata, an accessible name."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Names of namespaces are needless inside HTML, and xlink:href is what older readers of a bare SVG wanted.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.margins(x=0.01)


def over_time(jobs: Sequence[JobResult]) -> str:
    """IOPS and mean latency of each interval, one line a job; jobs without a series are left out."""
    shown = [(index, job) for index, job in enumerate(jobs) if len(job.series.t_s) > 1]
    with matplotlib.rc_context(STYLE):
        figure = svg_figure(7.2, 2.5)
        iops, latency = figure.subplots(1, 2)
        for index, job in shown:
            style = {
                "color": COLOURS[index % len(COLOURS)],
                "linestyle": DASHES[index % len(DASHES)],
                "marker": MARKERS[index % len(MARKERS)],
                "markersize": 3.5,
                "linewidth": 1.6,
                "label": job.name,
            }
            iops.plot(job.series.t_s, job.series.iops, **style)
            latency.plot(job.series.t_s, job.series.lat_ns, **style)
        _finish(iops, "IOPS over time", "seconds")
        _finish(latency, "Mean latency over time", "seconds")
        iops.yaxis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
        latency.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value) if value else "0"))
        for axes in (iops, latency):
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
        if shown:
            handles, labels = iops.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(shown)))
        return svg(figure, "IOPS and latency over time")


def percentiles(jobs: Sequence[JobResult]) -> str:
    """Latency percentiles, grouped by percentile, on a logarithmic scale, each bar with its value."""
    names = ("p50", "p90", "p99", "p99_9")
    with matplotlib.rc_context(STYLE):
        figure = svg_figure(7.2, 2.4)
        axes = figure.subplots()
        width = 0.8 / max(1, len(jobs))
        for index, job in enumerate(jobs):
            values = [getattr(job.lat_ns, name) for name in names]
            places = [group + (index - (len(jobs) - 1) / 2) * width for group in range(len(names))]
            colour = COLOURS[index % len(COLOURS)]
            bars = axes.bar(places, values, width * 0.92, color=colour, label=job.name)
            if len(jobs) <= 4:
                axes.bar_label(bars, [duration(v) if v == v else "" for v in values], padding=2, fontsize=7.5)
        axes.set_yscale("log")
        # Bars on a logarithmic axis mean something only from a round number up.
        lowest = min((job.lat_ns.p50 for job in jobs if job.lat_ns.p50 > 0), default=1e3)
        axes.set_ylim(bottom=10 ** math.floor(math.log10(lowest * 0.9)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.set_xticks(range(len(names)), [name.replace("_", ".").replace("p", "p ") for name in names])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value) if value else "0"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="x", visible=False)
        axes.set_title("Latency percentiles (logarithmic)")
        if len(jobs) > 1:
            figure.legend(loc="outside lower center", ncols=min(4, len(jobs)))
        return svg(figure, "Latency percentiles")


Rows = Mapping[str, Mapping[str, Interval]]
"""By job and peer."""
JOBS_PER_FIGURE = 12
"""So that a figure stays on one printed page, however many jobs there are."""


def ratios(rows: Rows, peers: Sequence[str], title: str) -> list[str]:
    """Ratios with their intervals, on a logarithmic scale (twice and half are as far from 1), a line at 1."""
    return _figures(rows, peers, title, ratio=True)


def medians(rows: Rows, peers: Sequence[str], title: str) -> list[str]:
    """Medians with their intervals, on a logarithmic scale: jobs differ by powers of ten."""
    return _figures(rows, peers, title, ratio=False)


def _figures(rows: Rows, peers: Sequence[str], title: str, *, ratio: bool) -> list[str]:
    """As many as it takes."""
    jobs = list(rows)
    parts = [jobs[start : start + JOBS_PER_FIGURE] for start in range(0, len(jobs), JOBS_PER_FIGURE)]
    figures = []
    for number, part in enumerate(parts, 1):
        name = title if len(parts) == 1 else f"{title}, {number} of {len(parts)}"
        with matplotlib.rc_context(STYLE):
            figures.append(svg(intervals({job: rows[job] for job in part}, peers, name, ratio=ratio), name))
    return figures


def intervals(rows: Rows, peers: Sequence[str], title: str, *, ratio: bool) -> Figure:
    """One group a job, one mark a peer, which is the same in every plot of the same peers."""
    shown = [(index, peer) for index, peer in enumerate(peers) if any(peer in row for row in rows.values())]
    columns = max(1, min(4, 92 // (max((len(peer) for _, peer in shown), default=0) + 6)))
    legend = math.ceil(len(shown) / columns) * 0.19
    figure = svg_figure(7.2, 0.7 + legend + len(rows) * (0.06 + 0.065 * max(2, len(shown))))
    axes = figure.subplots()
    step = 0.8 / max(1, len(shown))
    for slot, (index, peer) in enumerate(shown):
        offset = (slot - (len(shown) - 1) / 2) * step
        points = [(number + offset, row[peer]) for number, row in enumerate(rows.values()) if peer in row]
        _mark(axes, points, index, peer)
    axes.set_xscale("log")
    if ratio:
        _around_one(axes, [interval for row in rows.values() for interval in row.values()])
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    # Lines separate the groups, which stand close.
    for number in range(1, len(rows)):
        axes.axhline(number - 0.5, color="#e3e6ea", linewidth=0.8, zorder=0)
    axes.set_title(title)
    if shown:
        figure.legend(loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def _mark(axes: Axes, points: Sequence[tuple[float, Interval]], index: int, peer: str) -> None:
    """A peer's medians with their intervals. `points`: the place on the vertical axis, and the interval."""
    axes.errorbar(
        [interval.median for _, interval in points],
        [place for place, _ in points],
        xerr=[
            [max(0.0, interval.median - interval.low) for _, interval in points],
            [max(0.0, interval.high - interval.median) for _, interval in points],
        ],
        fmt=MARKERS[index % len(MARKERS)],
        color=COLOURS[index % len(COLOURS)],
        markersize=3.8,
        linewidth=1.2,
        capsize=1.5,
        label=peer,
    )


def _around_one(axes: Axes, shown: Sequence[Interval]) -> None:
    """From at least a half to at least twice, with a tick at each power of two."""
    low = min([0.5, *(interval.low for interval in shown if interval.low > 0)]) / 1.1
    high = max([2.0, *(interval.high for interval in shown)]) * 1.1
    axes.set_xlim(low, high)
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in powers]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(1, color="#30343b", linewidth=1)
