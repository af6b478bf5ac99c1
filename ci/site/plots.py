"""Drawings of the tables of IOPS on a page: bars in SVG, made of the very figures that the table shows.

A table is one of them if its first column is `job` and each of its rows begins with a number of IOPS. Owns no figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

_TABLE = re.compile(r"(?m)(?:^\|.*\|\n)+")
_IOPS = re.compile(r"\**(\d+(?:\.\d+)?)k")
_COLOURS = ("#00695c", "#80cbc4", "#e65100", "#ffb74d", "#3949ab", "#9fa8da")
_WIDTH, _LEFT, _BAR, _GAP = 760, 150, 11, 9


@dataclass(frozen=True)
class Table:
    """Peers, and of each job their IOPS in thousands; None: was not measured."""

    peers: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def read(text: str) -> Table | None:
    """The figures of a Markdown table, if it has IOPS."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    rows = [(line[0], tuple(_value(cell) for cell in line[1:])) for line in lines[2:]]
    if lines[0][0] != "job" or not rows or any(values[0] is None for _, values in rows):
        return None
    return Table(tuple(cell.replace("`", "") for cell in lines[0][1:]), tuple(rows))


def _value(cell: str) -> float | None:
    match = _IOPS.match(cell)
    return float(match[1]) if match else None


def svg(table: Table) -> str:
    """The table as bars: one group for each job, one colour for each peer."""
    most = max(value for _, values in table.rows for value in values if value is not None)
    legend = 20 * len(table.peers)
    height = legend + len(table.rows) * (len(table.peers) * _BAR + _GAP) + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_legend(table.peers),
    ]
    top = legend + _GAP
    for job, values in table.rows:
        parts.append(f'<text x="4" y="{top + len(values) * _BAR / 2 + 4:.0f}">{escape(job)}</text>')
        parts += _bars(values, top, most)
        top += len(values) * _BAR + _GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(peers: tuple[str, ...]) -> Iterator[str]:
    for number, peer in enumerate(peers):
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<rect x="{_LEFT}" y="{20 * number + 6}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{_LEFT + 18}" y="{20 * number + 16}">{escape(peer)}</text>'


def _bars(values: tuple[float | None, ...], top: int, most: float) -> Iterator[str]:
    for number, value in enumerate(values):
        if value is None:
            continue
        y, width = top + number * _BAR, (_WIDTH - _LEFT - 60) * value / most
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 1}" fill="{colour}"/>'
        yield f'<text x="{_LEFT + width + 4:.1f}" y="{y + _BAR - 2}">{value:g}k</text>'


def drawn(text: str) -> tuple[str, list[str]]:
    """A page with a reference to a drawing (`plots/N.svg`) after each such table, and the drawings."""
    found: list[str] = []

    def add(match: re.Match[str]) -> str:
        table = read(match[0])
        if table is None:
            return match[0]
        found.append(svg(table))
        return f"{match[0]}\n![IOPS by job and peer, as in the table](plots/{len(found)}.svg)\n"

    return _TABLE.sub(add, text), found
