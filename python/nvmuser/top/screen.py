"""The screen of `nvmuser top`: works in 80 columns, over ssh, with the keyboard alone.

Owns what is shown where. What is counted is `nvmuser.top.sample`'s.
"""

from __future__ import annotations

from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.widgets import DataTable, Footer, Static

from nvmuser.errors import NvmuserError
from nvmuser.paths import StateDir
from nvmuser.top.sample import SORTS, Rates, Sample, rates, take

_VOLUMES = ("volume", "read/s", "write/s", "read", "written", "lat r", "lat w")
_GUESTS = ("controller", "guest", "phase", "recoveries", "last stall", "longest")


class Top(App[None]):
    """:param interval: seconds between two looks."""

    TITLE = "nvmuser top"
    CSS = "#head { height: auto; } #volumes { height: 3fr; } #guests { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("s", "sort", "Sort"),
        ("space", "pause", "Pause"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, state: StateDir, interval: float, sort: str) -> None:
        super().__init__()
        self._state = state
        self._interval = interval
        self._sort = sort
        self._before: Sample | None = None
        self._paused = False

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield DataTable[str](id="volumes", cursor_type="row")
        yield DataTable[str](id="guests", cursor_type="none")
        yield Footer()

    async def on_mount(self) -> None:
        self.query_one("#volumes", DataTable).add_columns(*_VOLUMES)
        self.query_one("#guests", DataTable).add_columns(*_GUESTS)
        self.set_interval(self._interval, self.look)
        await self.look()

    async def look(self) -> None:
        """Count, and show what was done since the last time."""
        if self._paused:
            return
        try:
            sample = await take(self._state)
        except NvmuserError as error:
            self.query_one("#head", Static).update(str(error))
            return
        if self._before:
            self._show(rates(self._before, sample, self._sort))
        self._before = sample

    def action_sort(self) -> None:
        """By the next column."""
        self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        self.notify(f"sorted by {self._sort}", timeout=2)

    def action_pause(self) -> None:
        """Stop, or go on."""
        self._paused = not self._paused

    def _show(self, found: Rates) -> None:
        self.query_one("#head", Static).update("\n".join(head(found, self._sort)))
        volumes = self.query_one("#volumes", DataTable)
        row = volumes.cursor_row
        volumes.clear()
        for one in found.volumes:
            volumes.add_row(
                one.volume, f"{one.read_iops:,.0f}", f"{one.write_iops:,.0f}", size(one.read_bytes),
                size(one.write_bytes), latency(one.read_us), latency(one.write_us),
            )  # fmt: skip
        volumes.move_cursor(row=row)
        guests = self.query_one("#guests", DataTable)
        guests.clear()
        for guest in found.facts.get("guests", ()):
            guests.add_row(
                guest["controller"], str(guest["pid"]), guest["phase"], str(guest["recoveries"]),
                seconds(guest["last_stall"]), seconds(guest["longest_stall"]),
            )  # fmt: skip


def head(found: Rates, sort: str) -> list[str]:
    """The lines above the tables: each target, then what is wrong."""
    lines = []
    for name, facts in found.facts.get("targets", {}).items():
        state = "ready" if facts["ready"] and facts["answers"] else "not ready"
        cores = ", ".join(f"core {one.core} {one.percent:.0f} %" for one in found.reactors if one.target == name)
        standby = ", standby" if facts["standby"] else ""
        lines.append(f"target {name}: {state}{standby}, {facts['restarts']} restarts; {cores or 'no reactor seen'}")
    if not lines:
        lines.append("no supervisor answers: `nvmuser target start`")
    iops, moved = sum(one.iops for one in found.volumes), sum(one.bytes for one in found.volumes)
    lines.append(f"{len(found.volumes)} volumes by {sort}: {iops:,.0f} IOPS, {size(moved)}/s")
    return lines + [f"! {text}" for text in found.facts.get("errors", ())]


def size(value: float) -> str:
    """Bytes, for people."""
    for unit in ("", "K", "M", "G"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:,.1f}T"


def latency(value: float | None) -> str:
    """Microseconds, for people."""
    if value is None:
        return "-"
    return f"{value:,.0f}µs" if value < 10_000 else f"{value / 1000:,.0f}ms"


def seconds(value: float | None) -> str:
    """Seconds, for people."""
    return "-" if value is None else f"{value:.2f} s"
