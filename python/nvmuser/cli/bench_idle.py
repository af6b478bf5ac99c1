"""`nvmuser bench idle`: what endpoints cost while nobody uses them."""

from __future__ import annotations

import json

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.progress import Progress, run


@click.command("idle")
@click.option("--endpoints", type=click.IntRange(1, 1000), default=500, show_default=True, help="Idle ones.")
@click.option("--rounds", type=click.IntRange(1), default=6, show_default=True, help="Alone and beside them, in turn.")
@json_option
def idle_command(endpoints: int, rounds: int, as_json: bool) -> None:
    """A busy controller beside idle endpoints, and idle CPU with each profile.

    The load is fio in a guest of its own, on a file volume; CPU is that of the target, in percent of one core, with
    that guest connected and doing nothing. Everything is private and temporary.

    \b
    Examples:
      nvmuser bench idle
      nvmuser bench idle --endpoints 100 --rounds 3 --json
    """
    from nvmuser.bench.measure.scratch import scratch
    from nvmuser.bench.scenarios.idle import measure

    with scratch("nvmuser-") as root, Progress() as progress:
        found = run(measure(root, endpoints, rounds, progress)).to_json()
        progress.step("done")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    low, high = found["busy_ratio_ci"]
    iops = found["busy_iops"]
    click.echo(f"one busy controller beside {endpoints} idle: {found['busy_ratio']:.2f} of its throughput alone")
    click.echo(f"  {iops['beside']:.0f} and {iops['alone']:.0f} IOPS, interval of the ratio {low:.2f} to {high:.2f}")
    click.echo("idle CPU (% of a core)   target   endpoint")
    for profile, percent in found["idle_cpu_percent"].items():
        click.echo(f"  {profile:<20} {percent:8.1f}   {found['endpoint_idle_cpu_percent'][profile]:8.1f}")
