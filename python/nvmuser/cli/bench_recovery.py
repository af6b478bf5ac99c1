"""`nvmuser bench recovery`: kill, and see what the guest saw."""

from __future__ import annotations

from typing import Any

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.survived import measured


@click.command()
@click.option("--kill", type=click.Choice(["target", "endpoint", "both"]), default="target", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How many kills.")
@click.option("--standby", is_flag=True, help="With a second target that is started and stopped.")
@click.option(
    "--outage", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="No new target for so long."
)
@click.option("--queues", type=click.IntRange(1, 8), default=1, show_default=True, help="I/O queues: the guest's CPUs.")
@click.option("--overhead", is_flag=True, help="Compare throughput with --direct, in 12 interleaved rounds.")
@json_option
def recovery(as_json: bool, overhead: bool, **options: Any) -> None:
    """Kill the target (or the endpoint, or both) with SIGKILL while a guest writes, and verify every block.

    Everything is private and temporary. Fails when an I/O failed, a block is wrong, the guest rebooted, or
    its file system is damaged.

    \b
    Examples:
      nvmuser bench recovery --rounds 20
      nvmuser bench recovery --kill both --standby
      nvmuser bench recovery --outage 60 --rounds 1
    """
    from nvmuser.bench.scenarios.recovery import RecoveryPlan, measure

    measured(measure, RecoveryPlan(**options, overhead=12 if overhead else 0), as_json=as_json)
