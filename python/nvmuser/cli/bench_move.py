"""`nvmuser bench move`: a controller to and fro between two targets, and what its guest saw."""

from __future__ import annotations

import json
from typing import Any

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.progress import Progress, run
from nvmuser.errors import GuestError
from nvmuser.model.objects import TargetSettings


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="How many moves.")
@click.option(
    "--kills",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Then kill one target so often, while the guest reads from a disk on the other.",
)
@click.option(
    "--profile", type=click.Choice(TargetSettings.profiles), default="eco", show_default=True, help="Of both targets."
)
@json_option
def move(as_json: bool, **options: Any) -> None:
    """Move a controller between two targets while a guest writes on it, and verify every block.

    Everything is private and temporary. Fails when an I/O failed, a block is wrong, the guest rebooted, or its file
    system is damaged.

    \b
    Examples:
      nvmuser bench move --rounds 100
      nvmuser bench move --kills 10 --json
    """
    from nvmuser.bench.scenarios.move import MovePlan, measure

    plan = MovePlan(**options)
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
    return f"{value:.3f}" if isinstance(value, float) else str(value)
