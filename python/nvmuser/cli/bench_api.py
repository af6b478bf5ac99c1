"""`nvmuser bench api`: how fast the API is."""

from __future__ import annotations

import json

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.progress import Progress, run
from nvmuser.extras import require_extra


@click.command("api")
@click.option("--volumes", type=click.IntRange(1, 50_000), default=1000, show_default=True, help="That there are.")
@click.option("--clients", type=click.IntRange(1, 256), default=16, show_default=True, help="That change something.")
@click.option("--watchers", type=click.IntRange(1, 1000), default=200, show_default=True, help="Of events.")
@click.option("--seconds", type=click.FloatRange(1), default=5.0, show_default=True, help="For each part.")
@json_option
def api_command(volumes: int, clients: int, watchers: int, seconds: float, as_json: bool) -> None:
    """Changes of many clients at once, reads, scrapes of metrics, and watchers, beside many volumes.

    Everything is private and temporary.

    \b
    Examples:
      nvmuser bench api
      nvmuser bench api --volumes 100 --seconds 2 --json
    """
    require_extra("api", "nvmuser bench api")
    from nvmuser.bench.measure.scratch import scratch
    from nvmuser.bench.scenarios.api import measure

    with scratch("nvmuser-") as root, Progress() as progress:
        result = run(measure(root, volumes, clients, watchers, seconds, progress))
        progress.step("done")
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
        return
    click.echo(f"beside {volumes} volumes, {clients} clients: {result.changes_per_s:.0f} changes a second")
    click.echo(f"  a change    {result.change_p50_ms:7.1f} ms (median), {result.change_p99_ms:.1f} ms (p99)")
    click.echo(f"  a read      {result.read_p50_ms:7.1f} ms (median), {result.read_p99_ms:.1f} ms (p99), "
               f"{result.read_beside_changes_p99_ms:.1f} ms (p99) beside the changes")  # fmt: skip
    click.echo(f"  a scrape    {result.scrape_s * 1000:7.1f} ms, {result.scrape_bytes >> 10} KiB")
    click.echo(f"  {result.watchers} watchers had ten events {result.watchers_behind_ms:.0f} ms after the change")
