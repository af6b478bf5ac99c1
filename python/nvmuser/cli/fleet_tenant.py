"""`nvmuser fleet tenant`: who shares a fleet, and how much each may have."""

from __future__ import annotations

import dataclasses

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import run, say
from nvmuser.errors import NotFoundError, UsageError
from nvmuser.fleet.records import Quota
from nvmuser.fleet.settings import FleetSettings
from nvmuser.model.sizes import format_size, parse_size
from nvmuser.paths import StateDir
from nvmuser.supervisor import control


@click.command()
@click.argument("name")
@click.option("--volumes", type=click.IntRange(0), help="So many volumes at most; 0: no limit.")
@click.option("--size", metavar="SIZE", help="Their sizes together, such as 2T; 0: no limit.")
@click.option("--iops", type=click.IntRange(0), help="The sum of their limits; 0: no limit.")
@click.option("--forget", is_flag=True, help="Limit it no more; what it has stays.")
@json_option
@click.pass_obj
def tenant(
    state: StateDir, name: str, volumes: int | None, size: str | None, iops: int | None, forget: bool, as_json: bool
) -> None:
    """Show what a tenant has, and change what it may have. Names that begin with `NAME.` are its own.

    \b
    nvmuser fleet tenant acme --volumes 100 --size 2T --iops 50000
    nvmuser fleet tenant acme
    nvmuser volume create acme.disk1 --size 100G
    """
    from nvmuser.fleet import tenants
    from nvmuser.fleet.quotas import usage
    from nvmuser.fleet.session import session

    asked = {"volumes": volumes, "bytes": parse_size(size) if size is not None else None, "iops": iops}
    fields = {what: number for what, number in asked.items() if number is not None}
    if forget and fields:
        raise UsageError("--forget leaves no limit: leave the others out")

    async def changed() -> tuple[dict[str, int], dict[str, int]]:
        async with session(FleetSettings.required(state)) as one:
            if forget:
                await tenants.forget(one, name, control.local_actor())
            elif fields:
                await tenants.allow(one, name, control.local_actor(), **fields)
            view = await one.view()
            if not forget and name not in view.tenants:
                raise NotFoundError(f"tenant {name}: no such tenant; --volumes, --size or --iops make one")
            limit = view.tenants.get(name, Quota())
            return dataclasses.asdict(limit), dataclasses.asdict(usage(view, name))

    limit, used = run(changed())
    if as_json:
        say({"tenant": name, "used": used, "limit": limit})
        return
    for what, most in limit.items():
        text = format_size if what == "bytes" else str
        click.echo(f"{what}: {text(used[what])} of {text(most) if most else 'any number'}")
