"""`nvmuser volume stats`: what volumes have been asked to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import click
from rich.table import Table

from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, run, say
from nvmuser.errors import NotFoundError, TargetNotRunning
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.placement import on
from nvmuser.paths import StateDir
from nvmuser.reconcile.statistics import Counters, Statistics, collect
from nvmuser.rpc import Client
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--interval",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Count for so long, and print rates. Default: totals since the target started.",
)
@json_option
@click.pass_obj
def stats(state: StateDir, names: tuple[str, ...], interval: float | None, as_json: bool) -> None:
    """Show operations, bytes and mean latency of volumes, snapshots and clones; all of them without a NAME.

    \b
    nvmuser volume stats
    nvmuser volume stats data --interval 5
    nvmuser volume stats --json | jq '.[] | {volume, reads: .read.operations}'
    """
    desired = control.load(state)
    for name in names:
        desired.get(Key("volume", name))
    found = run(_counted(state, desired, interval))
    chosen = [found[name] for name in names or sorted(found) if name in found]
    if absent := [name for name in names if name not in found]:
        raise NotFoundError(f"volume {absent[0]}: the target does not have it; `nvmuser status` says why")
    if as_json:
        say([_json(statistics, interval) for statistics in chosen])
        return
    unit = "/s" if interval else ""
    table = Table("volume", *(f"{kind} {what}" for kind in ("read", "write") for what in (f"ops{unit}", f"bytes{unit}",
                  "mean latency")), f"unmap ops{unit}")  # fmt: skip
    for statistics in chosen:
        row = [cell for counters in (statistics.read, statistics.write) for cell in _cells(counters, interval or 1)]
        table.add_row(statistics.volume, *row, _number(statistics.unmap.operations / (interval or 1)))
    console().print(table)


async def _counted(state: StateDir, desired: Desired, interval: float | None) -> dict[str, Statistics]:
    if isinstance(state, Remote):
        return await _over(interval, lambda: asyncio.to_thread(state.counters))
    async with control.spdk(state) as targets:
        if not targets:
            raise TargetNotRunning("the target is not running; start it with `nvmuser target start`")
        return await _over(interval, lambda: _collected(targets, desired))


async def _over(interval: float | None, count: Callable[[], Awaitable[dict[str, Statistics]]]) -> dict[str, Statistics]:
    """Totals, or what was done in an interval."""
    before = await count()
    if interval is None:
        return before
    await asyncio.sleep(interval)
    return {name: counters - before[name] for name, counters in (await count()).items() if name in before}


async def _collected(targets: Mapping[str, Client], desired: Desired) -> dict[str, Statistics]:
    found = await asyncio.gather(*(collect(rpc, on(desired, name)) for name, rpc in targets.items()))
    return {volume: statistics for one in found for volume, statistics in one.items()}


def _json(statistics: Statistics, interval: float | None) -> dict[str, Any]:
    """Totals, or what was counted in the interval, which is then there too."""
    return statistics.to_json() | ({"interval_s": interval} if interval else {})


def _cells(counters: Counters, seconds: float) -> tuple[str, str, str]:
    mean = counters.mean_us
    latency = "-" if mean is None else f"{mean:,.0f} µs"
    return _number(counters.operations / seconds), _size(counters.bytes / seconds), latency


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    """With three digits or so: a rate is no size that has to be read back."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"
