"""`nvmuser bench migrate`: move a guest, and see what it saw."""

from __future__ import annotations

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.survived import measured
from nvmuser.model.sizes import parse_size


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=4, show_default=True, help="How often it moves.")
@click.option("--memory", default="512M", show_default=True, help="The guest's.")
@click.option("--queues", type=click.IntRange(1, 8), default=2, show_default=True, help="I/O queues: the guest's CPUs.")
@click.option(
    "--mode",
    type=click.Choice(["live", "freeze"]),
    default="live",
    show_default=True,
    help="Whether I/O goes on while memory is copied.",
)
@click.option("--peers", is_flag=True, help="QEMU's own nvme and virtio-blk too, on files of the same size.")
@json_option
def migrate(rounds: int, memory: str, queues: int, mode: str, peers: bool, as_json: bool) -> None:
    """Move a guest between two targets while it writes to two disks, and verify every block and what it has read.

    Everything is private and temporary. Fails when an I/O failed, a block or a page is wrong, the guest rebooted, or
    its file system is damaged.

    \b
    Examples:
      nvmuser bench migrate --rounds 20
      nvmuser bench migrate --rounds 20 --mode freeze
      nvmuser bench migrate --memory 4G --peers --json
    """
    from nvmuser.bench.scenarios.migrate import MigratePlan, measure

    measured(measure, MigratePlan(rounds, parse_size(memory), queues, mode, peers), as_json=as_json)
