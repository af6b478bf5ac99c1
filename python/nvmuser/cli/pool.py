"""`nvmuser pool`: volumes divided into volumes."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from nvmuser.cli.groups import Group
from nvmuser.cli.options import json_option
from nvmuser.cli.present import console, run, say, say_object
from nvmuser.cli.rename import rename
from nvmuser.hostfs.space import Space
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Pool
from nvmuser.model.sizes import approximate, parse_size
from nvmuser.paths import StateDir
from nvmuser.reconcile.space import pools
from nvmuser.supervisor import control


@click.group(cls=Group)
def pool() -> None:
    """Pools: a volume divided into volumes, with snapshots and clones.

    \b
    nvmuser volume create disk --path /dev/sdb
    nvmuser pool create fast --base disk
    nvmuser volume create db --backend lvol --pool fast --size 20G --thin
    """


@pool.command()
@click.argument("name")
@click.option("--base", required=True, metavar="VOLUME", help="What it lies on; used up by the pool.")
@click.option("--cluster-size", default="4M", show_default=True, help="Space is handed out in these.")
@json_option
@click.pass_obj
def create(state: StateDir, name: str, base: str, cluster_size: str, as_json: bool) -> None:
    """Declare a pool. What the volume held before is lost, unless it is a pool of this name already.

    All of the volume is written where it cannot unmap.
    """
    pool = Pool(name, base=base, cluster_size=parse_size(cluster_size))
    outcome = run(control.submit(state, Change(create=(pool,))))
    say_object(outcome, as_json, f"pool {name} created")


@pool.command("list")
@json_option
@click.pass_obj
def list_(state: StateDir, as_json: bool) -> None:
    """Every pool: how large it is, what is free, what its volumes may still write, and which they are."""
    desired = control.load(state)
    actual = run(control.actual(state)) if desired.pools() else None
    spaces = pools(desired, actual) if actual else {}
    rows = [_described(pool, desired, spaces.get(pool.name)) for pool in desired.pools()]
    if as_json:
        say(rows)
        return
    table = Table("pool", "on volume", "size", "free", "promised", "volumes")
    for row in rows:
        sizes = ("-" if row[field] is None else approximate(row[field]) for field in ("size", "free", "promised"))
        table.add_row(row["name"], row["base"], *sizes, ", ".join(row["volumes"]))
    console().print(table)
    if not actual and rows:
        click.echo("the target is not running: only it knows how large they are and what is free")


def _described(pool: Pool, desired: Desired, space: Space | None) -> dict[str, Any]:
    """Sizes in bytes; None where no target could be asked."""
    return pool.to_json() | {
        "cluster_size": pool.cluster_size,
        "size": space.total if space else None,
        "free": space.free if space else None,
        "used": space.total - space.free if space else None,
        "promised": space.promised if space else None,
        "volumes": [volume.name for volume in desired.volumes() if volume.pool == pool.name],
    }


@pool.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="The volume below may be erased.")
@json_option
@click.pass_obj
def delete(state: StateDir, name: str, yes: bool, as_json: bool) -> None:
    """Take a pool away; its volumes have to go first."""
    outcome = run(control.submit(state, Change(delete=(Key("pool", name),), wipe=yes)))
    say_object(outcome, as_json, f"pool {name} deleted")


pool.add_command(rename("pool", "fast nvme"))
