"""`nvmuser status`, which is `nvmuser target status` too: processes, guests, and whether SPDK has what is wanted.

A command that people repeat: what it does not always need is imported where it is needed.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, counted
from nvmuser.errors import NvmuserError
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.supervisor import control
from nvmuser.supervisor.history import stamped


@click.command()
@json_option
@click.pass_obj
def status(state: StateDir, as_json: bool) -> None:
    """Target, guests, recoveries and stalls, and whether SPDK has what is wanted. Fails when no target runs."""
    facts = asyncio.run(_ask(state))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, target in facts["targets"].items():
        _show_target(name, target)
    click.echo(f"          watched over by supervisor, pid {facts['supervisor']['pid']}")
    endpoint = facts["endpoint"]
    click.echo(
        f"endpoint  pid {endpoint['pid']}, {counted(endpoint['controllers'], 'controller')}, {endpoint['rss_kib']} KiB"
    )
    for trouble in facts["errors"]:
        click.echo(f"error     {trouble}")
    _show_objects(facts["objects"])
    if facts["guests"]:
        _show_guests(facts["guests"])
    else:
        click.echo("guests    none")


async def _ask(state: StateDir) -> dict[str, Any]:
    """What the supervisor knows, with how what is wanted and what SPDK has compare under `objects`."""
    async with control.connected(state) as supervisor:
        facts: dict[str, Any] = await supervisor.call("status", timeout=None)
        try:
            facts["objects"] = await supervisor.call("drift", timeout=None)
        except NvmuserError as error:
            # A target that hangs, or dies at this moment: what is known of the guests is wanted all the more.
            facts["objects"] = {}
            facts["errors"].append(stamped(f"not compared with what is wanted: {error}"))
    return facts


def _show_target(name: str, facts: dict[str, Any]) -> None:
    word = "not ready" if not facts["ready"] else "ready" if facts["answers"] else "does not answer"
    memory = "hugepages" if facts["hugepages"] else "no hugepages"
    standby = f", standby {facts['standby']}" if facts["standby"] else ""
    which = "" if name == DEFAULT_TARGET else f"{name}: "
    click.echo(f"target    {which}{word}, pid {facts['pid']}, SPDK {facts['spdk']}, {memory}{standby}")
    if facts["profile"]:
        click.echo(f"          profile {facts['profile']}, core {', '.join(map(str, facts['cores']))}")
    if facts["down"]:
        click.echo(f"          {facts['down']}")
    ending = f", last {facts['last_ending']}" if facts["last_ending"] else ""
    click.echo(f"          {counted(facts['restarts'], 'restart')}{ending}, start-up {_seconds(facts['startup_s'])}")


def _show_objects(objects: dict[str, Any]) -> None:
    """Nothing where they could not be compared."""
    if objects:
        click.echo(f"objects   {len(objects.pop('in_sync'))} in sync")
    for mirror in objects.pop("mirrors", []):
        click.echo(f"degraded  {mirror_line(mirror)}")
    if ways := objects.pop("remotes", []):
        from nvmuser.reconcile.remotes import Way

        for way in ways:
            click.echo(f"remote    {Way(**way)}")
    for name, found in sorted(objects.items()):
        if found:
            click.echo(f"{name:<9} {', '.join(found) if isinstance(found, list) else found}")


def mirror_line(mirror: dict[str, Any]) -> str:
    """A mirror that lacks a member, for a person: what serves it, and what to do."""
    if not mirror["online"]:
        return f"volume {mirror['volume']}: not served; missing: {', '.join(mirror['missing'])}"
    line = f"volume {mirror['volume']}: served by {', '.join(mirror['in_sync'])} alone"
    if mirror["rebuilding"]:
        line += f"; {mirror['rebuilding']} is being rebuilt, {mirror['percent']} %"
    if mirror["missing"]:
        replacement = f"nvmuser volume replace-member {mirror['volume']} {mirror['missing'][0]} NEW"
        line += (
            f"; {', '.join(mirror['missing'])} is missing: bring it back and `nvmuser reconcile`, or `{replacement}`"
        )
    return line


def _show_guests(guests: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("controller", "guest pid", "phase", "messages", "recoveries", "last stall", "longest stall"):
        table.add_column(title, no_wrap=True)
    for guest in guests:
        row = (guest["controller"], guest["pid"], guest["phase"], guest["messages"], guest["recoveries"])
        table.add_row(*map(str, row), _seconds(guest["last_stall"]), _seconds(guest["longest_stall"]))
    console().print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
