"""`nvmuser volume snapshot`, `clone`, `inflate`, `rollback`, `seize`: volumes made of others, or taken from others."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import run, say, say_object
from nvmuser.errors import TargetNotRunning, UsageError
from nvmuser.model import snapshots
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import seizure
from nvmuser.supervisor import control


@click.command()
@click.argument("name")
@click.argument("source")
@click.option(
    "--together",
    is_flag=True,
    help="SOURCE is a controller: all its volumes at one moment, of which each snapshot is called VOLUME-NAME.",
)
@json_option
@click.pass_obj
def snapshot(state: StateDir, name: str, source: str, together: bool, as_json: bool) -> None:
    """NAME is how SOURCE, a volume in a pool or in Ceph, is now; read only.

    With --together a guest that uses the controller waits for a fraction of a second, and what is made is what a power
    failure would have left: no volume has a write that came after one that another lacks.

    \b
    nvmuser volume snapshot db-friday db
    nvmuser volume snapshot friday c0 --together
    """
    if together:
        outcome = run(control.snapshot_together(state, source, name))
        made = ", ".join(one["name"] for one in outcome.objects)
        say_object(outcome, as_json, f"snapshots of all volumes of controller {source} created: {made}")
        return
    of = snapshots.source(control.load(state), source)
    outcome = run(control.submit(state, Change(create=(snapshots.beside(of, name, snapshot_of=source),))))
    say_object(outcome, as_json, f"snapshot {name} of {source} created")


@click.command()
@click.argument("name")
@click.argument("source")
@click.option("--image", default="", help="rbd: the name of its image. Default: NAME.")
@json_option
@click.pass_obj
def clone(state: StateDir, name: str, source: str, image: str, as_json: bool) -> None:
    """NAME begins as the snapshot SOURCE is, and shares its space until it is written.

    \b
    nvmuser volume clone test db-friday
    """
    of = snapshots.source(control.load(state), source)
    outcome = run(control.submit(state, Change(create=(snapshots.beside(of, name, clone_of=source, image=image),))))
    say_object(outcome, as_json, f"clone {name} of {source} created")


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def inflate(state: StateDir, name: str, as_json: bool) -> None:
    """Make a clone independent of its snapshot."""
    outcome = run(control.alter(state, lambda desired: replace(_in(desired, name), inflated=True)))
    say_object(
        outcome, as_json, f"volume {name} is {'to be' if outcome.pending else 'now'} independent of its snapshot"
    )


@click.command()
@click.argument("name")
@click.argument("snapshot")
@click.option("--yes", is_flag=True, help="What was written since may be lost.")
@json_option
@click.pass_obj
def rollback(state: StateDir, name: str, snapshot: str, yes: bool, as_json: bool) -> None:
    """Make NAME, a volume in a pool or in Ceph, what its SNAPSHOT is. What was written since is lost.

    No controller may show it meanwhile: detach it, and attach it again.

    \b
    nvmuser volume rollback db db-friday --yes
    """
    run(control.roll_back(state, Key("volume", name), Key("volume", snapshot), wipe=yes))
    if as_json:
        say({"volume": name, "snapshot": snapshot})
    else:
        click.echo(f"volume {name} is what its snapshot {snapshot} is")


@click.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Whoever has it is kept out of the whole cluster, for 30 days.")
@json_option
@click.pass_obj
def seize(state: StateDir, name: str, yes: bool, as_json: bool) -> None:
    """Take the image of NAME, a volume in Ceph, from another host that has it locked.

    What that host has in flight does not land any more, even if it was only stopped and goes on later. All images that
    the same process of it has open are lost to it: it has to be started again.

    \b
    nvmuser volume seize db --yes
    """
    desired = control.load(state)
    if not yes:
        raise UsageError(
            f"volume {name}: the client that has it locked loses all that it has open there; pass --yes to confirm"
        )
    taken = seizure.seize(state, _in(desired, name), desired)
    with contextlib.suppress(TargetNotRunning):
        run(control.ask(state, "reconcile"))
    if as_json:
        say({"volume": name, "fenced": taken})
    else:
        click.echo(
            f"volume {name}: fenced {', '.join(taken)}" if taken else f"volume {name}: nobody else has it locked"
        )


def _in(desired: Desired, name: str) -> Volume:
    volume = desired.get(Key("volume", name))
    assert isinstance(volume, Volume)
    return volume
