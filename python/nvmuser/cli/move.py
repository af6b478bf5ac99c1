"""Controllers from one target to another: what `controller move` and `target drain` do."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import click

from nvmuser.cli.present import run, say
from nvmuser.model.change import Change
from nvmuser.model.moves import moves
from nvmuser.paths import StateDir
from nvmuser.supervisor import control


def move(state: StateDir, names: Collection[str], to: str, as_json: bool) -> None:
    """Move them, one after the other, and print each as it is there.

    :raises NvmuserError: one cannot be moved; those before it are, and were printed.
    """
    found: list[dict[str, Any]] = []
    changes = moves(control.load(state), names, to)
    for change in changes:
        began = time.monotonic()
        outcome = run(control.submit(state, change))
        seconds = time.monotonic() - began
        found += [
            {"controller": name, "from": from_, "to": to, "seconds": round(seconds, 3), "pending": outcome.pending}
            for name, from_ in _names(change)
        ]
        for name, from_ in () if as_json else _names(change):
            when = "when the target is started" if outcome.pending else f"in {seconds:.2f} s"
            click.echo(f"controller {name} moved from target {from_} to {to} {when}")
    if as_json:
        say(found)
    elif not changes:
        click.echo(f"nothing to do: all of it is on target {to}" if names else "nothing to do: no controller is on it")


def _names(change: Change) -> list[tuple[str, str]]:
    """Each controller, and the target that it leaves."""
    return [(one.name, getattr(one, "target", "")) for one in change.expect]
