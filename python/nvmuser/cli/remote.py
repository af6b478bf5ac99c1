"""`nvmuser remote`: subsystems of other targets, over NVMe-oF TCP."""

from __future__ import annotations

import click
from rich.table import Table

from nvmuser.cli.groups import Group
from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, run, say, say_object
from nvmuser.errors import UsageError
from nvmuser.model.change import Change
from nvmuser.model.objects import Path, Remote
from nvmuser.paths import StateDir
from nvmuser.supervisor import control


@click.group(cls=Group)
def remote() -> None:
    """Remotes: subsystems of other targets, whose namespaces become volumes.

    \b
    nvmuser remote create store --nqn nqn.2026-11.org.example:store --path 10.0.0.1:4420 --path 10.1.0.1:4420
    nvmuser volume create disk --backend remote --remote store --nsid 1
    """


@remote.command()
@click.argument("name")
@click.option("--nqn", required=True, help="The subsystem there.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    required=True,
    metavar="ADDRESS[:PORT]",
    help="Several are paths to the same. May be repeated.",
)
@json_option
@click.pass_obj
def create(state: StateDir, name: str, nqn: str, paths: tuple[str, ...], as_json: bool) -> None:
    """Declare a remote."""
    one = Remote(name, nqn=nqn, paths=tuple(map(_path, paths)))
    outcome = run(control.submit(state, Change(create=(one,))))
    say_object(outcome, as_json, f"remote {name} {'declared' if outcome.pending else 'attached'}")


@remote.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every remote, and the ways to it."""
    remotes = control.load(state).remotes()
    if as_json:
        say([one.to_json() for one in remotes])
        return
    table = Table("remote", "NQN", "paths")
    for one in remotes:
        table.add_row(one.name, one.nqn, ", ".join(f"{path.name}:{path.port}" for path in one.paths))
    console().print(table)


@remote.command()
@click.argument("name")
@json_option
@click.pass_obj
def delete(state: StateDir, name: str, as_json: bool) -> None:
    """Detach a remote; the volumes from it have to go first. Its data stays where it is."""
    outcome = run(control.submit(state, Change(delete=(f"remote/{name}",))))
    say_object(outcome, as_json, f"remote {name} detached")


def _path(text: str) -> Path:
    """`10.0.0.1`, `10.0.0.1:4420`, `[::1]:4420`."""
    address, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return Path(text.strip("[]"))
    if not port.isdigit():
        raise UsageError(f"path {text!r}: expected ADDRESS:PORT, such as 10.0.0.1:4420 or [::1]:4420")
    return Path(address.strip("[]"), int(port))
