"""`nvmuser bench encryption`: what encryption at rest costs."""

from __future__ import annotations

import json

import click

from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.scenarios.encryption import measure
from nvmuser.cli.options import json_option
from nvmuser.cli.progress import Progress, run


@click.command("encryption")
@click.option("--rounds", type=click.IntRange(6, 100), default=24, show_default=True)
@click.option(
    "--block-size",
    type=click.Choice(["512", "4096"]),
    default="512",
    show_default=True,
    help="Bytes of a logical block.",
)
@json_option
def encryption_command(rounds: int, block_size: str, as_json: bool) -> None:
    """4k random reads and writes at depth 32 on a file volume and on an encrypted one, in short rounds, in turns.

    \b
    nvmuser bench encryption --json
    nvmuser bench encryption --block-size 4096
    """
    with scratch("nvmuser-") as root, Progress() as progress:
        result = run(measure(root, rounds, progress, int(block_size))).to_json()
        progress.step("done")
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for pattern, ratio in result["encrypted_ratio"].items():
        low, high = result["encrypted_ratio_ci"][pattern]
        plain, encrypted = (result["iops"][pattern][name] for name in ("plain", "encrypted"))
        speeds = f"{plain:9.0f} IOPS plain, {encrypted:9.0f} encrypted"
        click.echo(f"{pattern:10} {speeds}: {ratio:.2f} (95 %: {low:.2f} to {high:.2f})")
