"""The document of `bench scale`: which costs are in it, and with which power of their number each grows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvmuser.bench.measure import stats

SCHEMA = "nvmuser.bench.scale/1"


@dataclass(frozen=True)
class Figure:
    """A cost that may grow with the number of controllers: where it is in the document, and its unit."""

    part: str
    path: tuple[str, ...]
    title: str
    unit: str


FIGURES = {
    "busy_us": Figure("busy", ("us",), "one busy controller", "µs"),
    "all_us": Figure("busy", ("all_us",), "all at depth 1", "µs"),
    "stall_median": Figure("recovery", ("stall_s", "median"), "longest I/O, median client", "s"),
    "stall_max": Figure("recovery", ("stall_s", "max"), "longest I/O, worst client", "s"),
    "create_s": Figure("control", ("create_s",), "created", "s"),
    "status_s": Figure("control", ("status_s",), "nvmuser status", "s"),
    "compare_s": Figure("control", ("compare_s",), "nvmuser apply of what is there", "s"),
    "reapply_s": Figure("control", ("reapply_s",), "nvmuser apply of the same file again", "s"),
    "restore_s": Figure("control", ("restore_s",), "restored after a kill", "s"),
    "rss_target": Figure("control", ("rss_bytes", "target"), "target", "bytes"),
    "rss_endpoint": Figure("control", ("rss_bytes", "endpoint"), "endpoint", "bytes"),
    "rss_supervisor": Figure("control", ("rss_bytes", "supervisor"), "supervisor", "bytes"),
}


def costs(document: Mapping[str, Any], figure: Figure) -> dict[int, float]:
    """A cost at each number of controllers where it was measured; what is not above zero has no logarithm."""
    found: dict[int, float] = {}
    for number, values in document.get(figure.part, {}).items():
        for key in figure.path:
            values = values.get(key) if values else None
        if values:
            found[int(number)] = float(values)
    return found


def slopes(document: Mapping[str, Any]) -> dict[str, float]:
    """With which power of the number of controllers each cost grows, where it was measured at two numbers at least."""
    points = {name: costs(document, figure) for name, figure in FIGURES.items()}
    return {name: stats.slope(list(cost), list(cost.values())) for name, cost in points.items() if len(cost) > 1}
