"""`nvmuser top`: what is going on now."""

from __future__ import annotations

import asyncio
import sys

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import run, say
from nvmuser.errors import UsageError
from nvmuser.extras import require_extra
from nvmuser.paths import StateDir
from nvmuser.top.sample import SORTS, Rates, rates, take


@click.command()
@click.option("--once", is_flag=True, help="Count for one interval, print it, and end.")
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=2.0, show_default=True, metavar="SECONDS", help="Of counting."
)
@click.option("--sort", type=click.Choice(SORTS), default="iops", show_default=True)
@json_option
@click.pass_obj
def top(state: StateDir, once: bool, interval: float, sort: str, as_json: bool) -> None:
    """Show targets and how busy their cores are, volumes by what they do, and guests with their recoveries, live.

    Keys: s sorts by another column, space pauses, q quits.

    \b
    Examples:
      nvmuser top
      nvmuser top --once --json | jq '.volumes[0]'
      nvmuser --server https://host2:8460 --token-file host2.token top
    """
    if as_json and not once:
        raise UsageError("--json is of one interval: pass --once too")
    if once:
        found = run(_once(state, interval, sort))
        if as_json:
            say(found.to_json())
        else:
            _print(found)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("there is no terminal: pass --once, with --json for programs")
    require_extra("top", "nvmuser top without --once")
    from nvmuser.top.screen import Top

    Top(state, interval, sort).run()


async def _once(state: StateDir, interval: float, sort: str) -> Rates:
    before = await take(state)
    await asyncio.sleep(interval)
    return rates(before, await take(state), sort)


def _print(found: Rates) -> None:
    for one in found.reactors:
        click.echo(f"target {one.target}, core {one.core}: {one.percent:.0f} % busy")
    for row in found.volumes:
        click.echo(
            f"{row.volume:<24} {row.read_iops:>9,.0f} read/s {row.write_iops:>9,.0f} write/s "
            f"{row.bytes / 2**20:>9,.1f} MiB/s"
        )
    for text in found.facts.get("errors", ()):
        click.echo(f"error     {text}")
