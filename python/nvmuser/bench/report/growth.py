"""How cost grows, as a plot: cost over number, both logarithmic, so that a power is a straight line.

The look is that of `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from nvmuser.bench.report.plots import COLOURS, DASHES, MARKERS, STYLE, si, svg, svg_figure

Lines = Mapping[str, Mapping[int, float]]
"""By what is measured: its cost at each number."""


def growth(lines: Lines, slopes: Mapping[str, float], title: str, unit: str) -> str:
    """One line for each cost, its slope in the legend.

    :param slopes: by the names of the lines; those without one have been measured at one number alone.
    """
    numbers = sorted({number for line in lines.values() for number in line})
    with matplotlib.rc_context(STYLE):
        figure = svg_figure(7.2, 2.7)
        axes = figure.subplots()
        for index, (name, line) in enumerate(lines.items()):
            label = f"{name}, slope {slopes[name]:.2f}" if name in slopes else name
            axes.plot(
                sorted(line),
                [line[number] for number in sorted(line)],
                color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linewidth=1.6,
                label=label,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator(numbers))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{si(value)} {unit}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("controllers")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
        return svg(figure, title)
