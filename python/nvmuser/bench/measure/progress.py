"""What a measurement reports while it runs. The CLI has the implementation that prints."""

from __future__ import annotations

from typing import Protocol

from nvmuser.bench.measure.fio_output import Estimate


class Progress(Protocol):
    """Receiver of the steps of a measurement."""

    def step(self, text: str) -> None:
        """Begin a step; the one before has ended."""

    def estimate(self, workload: str, estimate: Estimate) -> None:
        """Report fio's own estimate of the workload that runs, about once a second."""


class Silent:
    """Progress that nobody sees."""

    def step(self, text: str) -> None:
        """Report nothing."""

    def estimate(self, workload: str, estimate: Estimate) -> None:
        """Report nothing."""
