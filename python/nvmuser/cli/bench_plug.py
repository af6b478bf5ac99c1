"""`nvmuser bench plug`: how long a guest waits for a disk."""

from __future__ import annotations

import json

import click

from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.scenarios.plug import MOST_ROUNDS, plugging
from nvmuser.cli.options import json_option
from nvmuser.cli.progress import Progress, run


@click.command("plug")
@click.option("--rounds", type=click.IntRange(1, MOST_ROUNDS), default=10, show_default=True)
@json_option
def plug_command(rounds: int, as_json: bool) -> None:
    """From the command to a block device in the guest: a controller plugged in, a namespace attached.

    Beside a bare QMP script that only sends device_add. Measured in a deployment and a guest of its own.
    """
    with scratch("nvmuser-") as root, Progress() as progress:
        result = run(plugging(root, rounds, progress)).to_json()
        progress.step("done")
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    titles = {
        "plug_s": "a controller plugged in",
        "bare_qmp_s": "a bare device_add",
        "attach_s": "a namespace attached",
    }
    click.echo(f"{'seconds until the guest has the disk':40} {'median':>8} {'worst':>8}   ({rounds} rounds)")
    for key, title in titles.items():
        click.echo(f"{title:40} {result[key]['median']:8.3f} {result[key]['max']:8.3f}")
