"""The end of a benchmark in which a guest goes through something: its facts, and whether all was well."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import click

from nvmuser.cli.progress import Progress, run
from nvmuser.errors import GuestError


class _Outcome(Protocol):
    @property
    def wrong(self) -> str | None:
        """What the guest lost, in words; None or empty if nothing."""

    def to_json(self, plan: Any) -> dict[str, Any]:
        """The facts by their names."""


def measured(measure: Callable[[Any, Progress], Coroutine[Any, Any, _Outcome]], plan: Any, *, as_json: bool) -> None:
    """Carry out a plan and print what came of it.

    :raises GuestError: the guest has lost something, or what was measured is not there.
    """
    with Progress() as progress:
        outcome = run(measure(plan, progress))
        progress.step("done")
    facts = outcome.to_json(plan)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        for name, value in facts.items():
            click.echo(f"{name:<20} {_words(value)}")
    if outcome.wrong:
        raise GuestError(outcome.wrong)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return " to ".join(map(_words, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)
