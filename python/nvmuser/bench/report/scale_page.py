"""`bench scale` for people: lines for a terminal, and a page with plots of cost over number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvmuser.bench.measure.environment import describe
from nvmuser.bench.report import page
from nvmuser.bench.report.growth import growth
from nvmuser.bench.report.plots import si
from nvmuser.bench.report.scale_document import FIGURES, Figure, costs

_TITLES = {
    "busy": "Busy controllers: IOPS of one target's core",
    "recovery": "Clients of the protocol library: longest I/O when the target is killed",
    "guests": "Guests: longest I/O when the target is killed",
    "control": "The control plane: seconds and memory",
}


def rows(document: Mapping[str, Any], part: str) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of a part's table."""
    heads: list[str] = []
    lines = []
    for number, values in document[part].items():
        flat = dict(_flat(values))
        heads = heads or ["controllers", *flat]
        lines.append([number, *(page.MISSING if value is None else si(value) for value in flat.values())])
    return heads, lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float | None]]:
    found: list[tuple[str, float | None]] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found += _flat(value, f"{key}.")
        elif value is None or isinstance(value, int | float):
            found.append((key, value))
    return found


def text(document: Mapping[str, Any]) -> str:
    """For a terminal."""
    blocks = []
    for part in filter(document.__contains__, _TITLES):
        heads, lines = rows(document, part)
        widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
        padded = (map(str.rjust, row, widths) for row in (heads, *lines))
        blocks.append("\n".join((_TITLES[part], *map("  ".join, padded))))
    if slopes := document["slope"]:
        named = ", ".join(f"{FIGURES[name].title} {slope:.2f}" for name, slope in slopes.items())
        blocks.append(f"grows with this power of the number (1: in proportion): {named}")
    if warning := page.busy(document["environment"]["noise"]):
        blocks.append(warning)
    return "\n\n".join(blocks)


def html(document: Mapping[str, Any], title: str = "How cost grows with the number of controllers") -> str:
    """The same as a page, with plots."""
    environment, software = document["environment"], document["versions"]
    return page.render(
        "scale.html.j2",
        title=title,
        document=document,
        warning=page.busy(environment["noise"]),
        figures=_plots(document),
        tables=[(_TITLES[part], *rows(document, part)) for part in _TITLES if part in document],
        facts=[
            ("Host", describe(environment)),
            ("Software", f"SPDK {software['spdk']}"),
            ("Rounds", f"{document['rounds']}; medians"),
        ],
    )


def _plots(document: Mapping[str, Any]) -> list[str]:
    """One for each part and unit that has a cost."""
    groups: dict[tuple[str, str], list[tuple[str, Figure]]] = {}
    for name, figure in FIGURES.items():
        groups.setdefault((figure.part, figure.unit), []).append((name, figure))
    plots = []
    for (part, unit), figures in groups.items():
        lines = {figure.title: cost for _, figure in figures if (cost := costs(document, figure))}
        slopes = {figure.title: document["slope"][name] for name, figure in figures if name in document["slope"]}
        if lines:
            plots.append(growth(lines, slopes, _TITLES[part], unit))
    return plots
