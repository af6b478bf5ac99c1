"""`nvmuser volume snapshot`, `clone`, `inflate`, `rollback`, `seize`: volumes made of others, or taken from others."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import click

from nvmuser.cli.options import json_option
from nvmuser.cli.present import run, say, say_object
from nvmuser.errors import TargetNotRunning, UsageError
from nvmuser.model.backends import BACKENDS
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
@json_option
@click.pass_obj
def snapshot(state: StateDir, name: str, source: str, as_json: bool) -> None:
    """NAME is how SOURCE, a volume in a pool or in Ceph, is now; read only.

    \b
    nvmuser volume snapshot db-friday db
    """
    of = _source(control.load(state), source)
    outcome = run(control.submit(state, Change(create=(_beside(of, name, snapshot_of=source),))))
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
    of = _source(control.load(state), source)
    outcome = run(control.submit(state, Change(create=(_beside(of, name, clone_of=source, image=image),))))
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


def _beside(of: Volume, name: str, **fields: str) -> Volume:
    """A volume in the same place."""
    same = ("pool", "cluster", "pool_name", "block_size", "volatile")
    return Volume(name, of.backend, **{field: getattr(of, field) for field in same} | fields)


def _source(desired: Desired, name: str) -> Volume:
    """What is to have a snapshot or a clone."""
    volume = _in(desired, name)
    if "snapshot_of" not in BACKENDS[volume.backend].takes:
        raise UsageError(
            f"volume {name} is {BACKENDS[volume.backend].article} {volume.backend} volume, and only volumes in a pool "
            "or in Ceph have snapshots and clones"
        )
    return volume


def _in(desired: Desired, name: str) -> Volume:
    volume = desired.get(Key("volume", name))
    assert isinstance(volume, Volume)
    return volume
