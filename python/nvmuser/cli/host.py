"""`nvmuser host …`: the hosts of a fleet."""

from __future__ import annotations

from typing import Any

import click

from nvmuser.cli.groups import Group
from nvmuser.cli.options import json_option
from nvmuser.cli.present import plain, run, say
from nvmuser.errors import NotFoundError, UsageError
from nvmuser.extras import require_extra
from nvmuser.fleet.overview import document
from nvmuser.fleet.settings import FleetSettings
from nvmuser.paths import StateDir
from nvmuser.supervisor import control


@click.group(cls=Group)
def host() -> None:
    """The hosts of the fleet that this host is part of.

    \b
    Examples:
      nvmuser host list
      nvmuser host label h1 rack=a
      nvmuser host cordon h1
      nvmuser host drain h1
    """
    require_extra("fleet", "nvmuser host")


async def _found(state: StateDir) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await document(FleetSettings.required(state)))["hosts"]
    return found


@host.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """List the hosts, whether they live, and what is on them.

    \b
    nvmuser host list --json
    """
    from nvmuser.cli import fleet_shown

    if as_json:
        say(run(_found(state)))
    else:
        fleet_shown.show(run(document(FleetSettings.required(state))))


@host.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(state: StateDir, name: str, as_json: bool) -> None:
    """Show one host.

    \b
    nvmuser host show h1
    """
    found = {one["name"]: one for one in run(_found(state))}
    if name not in found:
        raise NotFoundError(f"host {name}: no such host; `nvmuser host list` shows those that there are")
    if as_json:
        say(found[name])
        return
    for field, value in found[name].items():
        click.echo(f"{field.replace('_', ' ')}: {plain(value)}")


@host.command()
@click.argument("name")
@json_option
@click.pass_obj
def cordon(state: StateDir, name: str, as_json: bool) -> None:
    """Place nothing new on a host. What is there stays.

    \b
    nvmuser host cordon h1
    """
    _alter(state, name, as_json, f"host {name}: nothing new is placed on it", cordoned=True)


@host.command()
@click.argument("name")
@json_option
@click.pass_obj
def uncordon(state: StateDir, name: str, as_json: bool) -> None:
    """Place new objects on a host again.

    \b
    nvmuser host uncordon h1
    """
    _alter(state, name, as_json, f"host {name}: new objects are placed on it", cordoned=False)


@host.command()
@click.argument("name")
@json_option
@click.pass_obj
def drain(state: StateDir, name: str, as_json: bool) -> None:
    """Move all that can move from a host to others, and place nothing new on it. The host gives it up.

    What stays is named, with the reason: data that is on that host alone, a guest that is connected. Exit status 1 when
    something stays.

    \b
    nvmuser host drain h1
    """
    _evacuate(state, name, as_json, force=False)


@host.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also a host that answers.")
@json_option
@click.pass_obj
def evict(state: StateDir, name: str, force: bool, as_json: bool) -> None:
    """Move all that can move from a host that does not answer. Its storage shuts it out first.

    Where that is not certain, nothing moves, and the reason is named. Exit status 1 when something stays.

    \b
    nvmuser host evict h1
    """
    _evacuate(state, name, as_json, force=True, living=force)


def _evacuate(state: StateDir, name: str, as_json: bool, *, force: bool, living: bool = False) -> None:
    from nvmuser.fleet import evacuation, membership
    from nvmuser.fleet.session import session

    actor = control.local_actor()

    async def evacuated() -> evacuation.Evacuated:
        async with session(FleetSettings.required(state)) as one:
            view = await one.view()
            if not force:
                evacuation.check_answers(view, name)
            elif not living:
                evacuation.check_silent(view, name)
            await membership.alter_host(one, name, actor, cordoned=True)
            return await evacuation.evacuate(one, name, actor, force=force)

    found = run(evacuated())
    if as_json:
        moved, stayed = ({str(key): text for key, text in sorted(one.items())} for one in (found.moved, found.stayed))
        say({"host": name, "moved": moved, "stayed": stayed})
    else:
        for key, to in sorted(found.moved.items()):
            click.echo(f"{key.words} is on host {to}")
        for key, why in sorted(found.stayed.items()):
            click.echo(f"{key.words} stays: {why}")
        if not found.moved and not found.stayed:
            click.echo(f"host {name} has nothing")
    if found.stayed:
        raise SystemExit(1)


@host.command()
@click.argument("name")
@click.argument("labels", nargs=-1, required=True, metavar="LABEL=VALUE…")
@json_option
@click.pass_obj
def label(state: StateDir, name: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Say something of a host, by which controllers may be placed. `LABEL=` takes a label away.

    \b
    nvmuser host label h1 rack=a disk=nvme
    """
    pairs = dict(text.partition("=")[::2] for text in labels)
    if wrong := [text for text in labels if "=" not in text or text.startswith("=")]:
        raise UsageError(f"label {wrong[0]!r}: expected LABEL=VALUE, such as rack=a")
    _alter(state, name, as_json, f"host {name} is labelled", labels=pairs)


def _alter(state: StateDir, name: str, as_json: bool, text: str, **fields: Any) -> None:
    from nvmuser.fleet import membership
    from nvmuser.fleet.session import session

    async def altered() -> dict[str, Any]:
        async with session(FleetSettings.required(state)) as one:
            return (await membership.alter_host(one, name, control.local_actor(), **fields)).to_json()

    found = run(altered())
    if as_json:
        say(found)
    else:
        click.echo(text)
