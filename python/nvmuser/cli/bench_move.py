"""`nvmuser bench move`: a controller to and fro between two targets, and what its guest saw."""

from __future__ import annotations

from typing import Any

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.survived import measured
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

    measured(measure, MovePlan(**options), as_json=as_json)
