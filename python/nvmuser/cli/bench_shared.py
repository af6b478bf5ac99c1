"""`nvmuser bench shared`: volumes that several hosts reach."""

from __future__ import annotations

import click

from nvmuser.cli.options import json_document
from nvmuser.cli.survived import measured
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

_PIECES = ("rbd_ratio", "encrypted_ratio", "kills", "refused")
_KINDS = ("rbd", "remote", "encrypted", "file")


@click.command()
@click.option("--only", type=click.Choice(_PIECES), multiple=True, help="Measure this alone. May be repeated.")
@click.option("--cluster", default="", help="Use this cluster of the state directory. Without: a Ceph of its own.")
@click.option("--pool-name", default="rbd", show_default=True, help="The pool there, in which images are made.")
@click.option("--rounds", type=click.IntRange(1, 100), default=9, show_default=True, help="Of rbd_ratio.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=2.0, show_default=True, help="Of each of its runs.")
@click.option("--kills", type=click.IntRange(1, 1000), default=20, show_default=True, help="Of each kind of volume.")
@click.option(
    "--kind", "kinds", type=click.Choice(_KINDS), multiple=True, help="Kill under this alone. May be repeated."
)
@json_document("rbd_ratio.{randread,randwrite}, encrypted_ratio, kills.KIND.{io_errors,bad_blocks,stall_s}, refused_s")
@click.pass_obj
def shared(
    state: StateDir, only: tuple[str, ...], cluster: str, pool_name: str, rounds: int, seconds: float, kills: int,
    kinds: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Volumes in Ceph beside fio's own engine for them, and encrypted ones beside plain ones; volumes in Ceph, on a
    remote, encrypted and on a file under a target that is killed; a second host refused.

    Everything is private and temporary; a Ceph of its own needs root and Debian's packages ceph-mon, ceph-osd and
    ceph-common. Fails when an I/O failed, a block is wrong, or a second host was let in.

    \b
    Examples:
      nvmuser bench shared --json
      nvmuser bench shared --only rbd_ratio --rounds 9
      nvmuser bench shared --only kills --kind rbd --kind file
      nvmuser bench shared --cluster ceph --pool-name scratch
    """
    from nvmuser.bench.scenarios.shared import SharedPlan, measure
    from nvmuser.bench.scenarios.shared_volumes import Ceph

    named = control.load(state).get(Key("cluster", cluster)) if cluster else None
    assert named is None or isinstance(named, Cluster)
    plan = SharedPlan(
        only or _PIECES, rounds, seconds, kills, kinds or _KINDS, Ceph(named, pool_name) if named else None
    )
    measured(measure, plan, as_json=as_json)
