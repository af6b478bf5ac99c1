"""`nvmuser cluster`: Ceph, whose images become volumes."""

from __future__ import annotations

import os
from typing import Any

import click
from rich.table import Table

from nvmuser.cli.groups import Group
from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, run, say, say_object
from nvmuser.cli.rename import rename
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster
from nvmuser.paths import StateDir
from nvmuser.reconcile.actual import Actual
from nvmuser.supervisor import control


@click.group(cls=Group)
def cluster() -> None:
    """Clusters: Ceph, whose images become volumes. Needs `nvmuser setup --with rbd`.

    \b
    nvmuser cluster add ceph --conf /etc/ceph/ceph.conf --user vms --keyring /etc/ceph/ceph.client.vms.keyring
    nvmuser volume create disk --backend rbd --cluster ceph --pool-name vms --image disk --size 10G --create
    """


@cluster.command()
@click.argument("name")
@click.option("--conf", metavar="FILE", default=Cluster.conf, show_default=True, help="Its ceph.conf.")
@click.option("--user", default=Cluster.user, show_default=True, help="Who we are there: USER of client.USER.")
@click.option("--keyring", metavar="FILE", default="", help="File with the user's key.  [default: as --conf says]")
@json_option
@click.pass_obj
def add(state: StateDir, name: str, conf: str, user: str, keyring: str, as_json: bool) -> None:
    """Declare a cluster. A target connects to it when a volume of it is wanted there.

    The user needs `mon 'profile rbd' osd 'profile rbd pool=POOL'`. Targets that run load SPDK's module for it with
    `nvmuser target restart`.

    \b
    nvmuser cluster add ceph
    nvmuser cluster add ceph --conf /etc/ceph/ceph.conf --user vms --keyring /etc/ceph/ceph.client.vms.keyring
    """
    one = Cluster(name, conf=os.path.abspath(conf), user=user, keyring=os.path.abspath(keyring) if keyring else "")
    outcome = run(control.submit(state, Change(create=(one,))))
    actual = run(control.actual(state))
    restart = actual is not None and not actual.rbd
    text = "; it is connected to with the next `nvmuser target restart`" if restart else ""
    say_object(outcome, as_json, f"cluster {name} declared{text}")


@cluster.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every cluster, and by which address we are known there."""
    desired = control.load(state)
    actual = run(control.actual(state)) if desired.clusters() else None
    rows = [_described(one, desired, actual) for one in desired.clusters()]
    if as_json:
        say(rows)
        return
    table = Table("cluster", "conf", "user", "volumes", "our address")
    for row in rows:
        table.add_row(row["name"], row["conf"], row["user"], ", ".join(row["volumes"]), row["address"] or "-")
    console().print(table)


@cluster.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(state: StateDir, name: str, as_json: bool) -> None:
    """One cluster in full."""
    desired = control.load(state)
    one = desired.get(Key("cluster", name))
    assert isinstance(one, Cluster)
    data = _described(one, desired, run(control.actual(state)))
    if as_json:
        say(data)
        return
    for key, value in data.items():
        if value and key != "kind":
            click.echo(f"{key:12} {', '.join(value) if isinstance(value, list) else value}")


def _described(one: Cluster, desired: Desired, actual: Actual | None) -> dict[str, Any]:
    """With its defaults, what is on it, and the address of a target's connection; empty where there is none."""
    volumes = [volume.name for volume in desired.volumes() if volume.cluster == one.name]
    address = actual.clusters.get(one.in_spdk, "") if actual else ""
    fields = {"conf": one.conf, "user": one.user, "keyring": one.keyring}
    return one.to_json() | fields | {"volumes": volumes, "address": address}


@cluster.command()
@click.argument("name")
@json_option
@click.pass_obj
def delete(state: StateDir, name: str, as_json: bool) -> None:
    """Forget a cluster; the volumes in it have to go first. What is in it stays."""
    outcome = run(control.submit(state, Change(delete=(Key("cluster", name),))))
    say_object(outcome, as_json, f"cluster {name} forgotten")


cluster.add_command(rename("cluster", "ceph archive"))
