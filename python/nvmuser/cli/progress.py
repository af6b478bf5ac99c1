"""Progress of what takes long, on stderr, and how it is interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.status import Status

from nvmuser.cli.present import run_guarded

if TYPE_CHECKING:
    from nvmuser.bench.measure.fio_output import Estimate

T = TypeVar("T")


class Progress:
    """A context manager that prints on stderr what goes on and for how long: a live status line on a terminal, a line
    for each step elsewhere.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._step = ""
        self._started = self._step_started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def step(self, text: str) -> None:
        """Begin a step; the one before keeps its time on the screen."""
        now = time.monotonic()
        if self._status is not None and self._step:
            self._console.print(f"[dim]{now - self._step_started:5.1f} s[/dim]  {self._step}")
        elif self._status is None:
            self._console.print(f"[{now - self._started:5.1f} s] {text}", markup=False, soft_wrap=True)
        self._step, self._step_started = text, now
        self.detail("")

    def detail(self, text: str) -> None:
        """Show how far the step is."""
        if self._status is not None:
            self._status.update(f"{self._step}  [bold]{text}[/bold]")

    def estimate(self, _workload: str, estimate: Estimate) -> None:
        """Show fio's own estimate."""
        from nvmuser.bench.report.plots import si

        left = "" if not estimate.left else f", {estimate.left:.0f} s left"
        self.detail(f"{si(estimate.iops)} IOPS{left}")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end; an interrupt or SIGTERM ends it in good order, with nothing left behind.

    :raises click.Abort: it was interrupted.
    """
    try:
        return run_guarded(work)
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise click.Abort from None
