"""`nvmuser controller prepare-incoming`, `take-back`, `release`: controllers whose guests move between hosts."""

from __future__ import annotations

import json
from typing import Any, TextIO

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import run, say, say_object
from nvmuser.errors import UsageError
from nvmuser.model import incoming
from nvmuser.paths import StateDir
from nvmuser.supervisor import control


@click.command("prepare-incoming")
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=click.File(),
    default="-",
    metavar="FILE",
    help="What `nvmuser controller show --json` prints where the guest is. Default: standard input.",
)
@json_option
@click.pass_obj
def prepare_incoming(state: StateDir, name: str, source: TextIO, as_json: bool) -> None:
    """Expect a guest with this controller, which another host has now.

    The controller is declared with the same identity, and its socket is there; its volumes stay closed until the guest
    arrives. Their files have to be at the same paths, on storage that both hosts share. May be given again.

    \b
    ssh here nvmuser controller show c0 --json | nvmuser controller prepare-incoming c0
    nvmuser controller prepare-incoming c0 --from c0.json
    """
    controller, volumes = incoming.expected(name, _description(source))
    change = incoming.change(control.load(state), controller, volumes)
    if change:
        run(control.submit(state, change))
    if as_json:
        say({"name": name, "socket": str(state.socket(name)), "declared": change is not None})
    else:
        click.echo(f"controller {name} expects its guest: {state.socket(name)}")


def _description(source: TextIO) -> dict[str, Any]:
    try:
        description = json.load(source)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source.name}: not JSON: {error}") from error
    if not isinstance(description, dict):
        raise UsageError(f"{source.name}: not the description of a controller")
    return description


@click.command("take-back")
@click.argument("name")
@json_option
@click.pass_obj
def take_back(state: StateDir, name: str, as_json: bool) -> None:
    """Open a controller's volumes here, after a migration that ended nowhere.

    First make sure that the guest does not run on the other host: what is on storage of this machine is locked, what is
    on a network may not be. Done by itself for a guest that goes on here.

    \b
    nvmuser controller take-back c0
    """
    run(control.take_back(state, name))
    if as_json:
        say({"name": name, "away": False})
    else:
        click.echo(f"controller {name}: its volumes are open here")


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def release(state: StateDir, name: str, as_json: bool) -> None:
    """Forget a controller, and its volumes, whose guest has left for another host or has not come. The files stay.

    \b
    nvmuser controller release c0
    """
    outcome = run(control.submit(state, incoming.forget(control.load(state), name)))
    say_object(outcome, as_json, f"controller {name} and its volumes are forgotten here; their files stay")
