"""A volume in Ceph made what one of its snapshots is: closed, rolled back, opened again."""

from __future__ import annotations

import asyncio

from nvmuser.ceph import images
from nvmuser.errors import ConflictError, UsageError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.model.placement import places
from nvmuser.reconcile import backends
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome

_CLOSE_S = 60.0


async def roll_back(engine: Engine, key: Key, snapshot: Key, *, wipe: bool) -> Outcome:
    """Carry it out. Nothing else is changed meanwhile: its caller sees to that.

    :param wipe: what was written since may be lost.
    :raises NvmuserError: it has not been rolled back; it is open again.
    """
    desired = engine.desired()
    volume, of = _checked(desired, key, snapshot, wipe=wipe)
    for name in places(desired)[key]:
        if rpc := engine.site(name).rpc:
            found = await rpc.call("bdev_get_bdevs")
            bdev, request = backends.bdev_name(volume, desired), backends.delete(volume, desired)
            if request and any(one["name"] == bdev for one in found):
                await rpc.call(request.method, request.params, timeout=_CLOSE_S)
    try:
        await asyncio.to_thread(images.roll_back, desired.cluster_of(volume), volume, of.in_spdk)
    finally:
        outcome = await engine.reconcile()
    return outcome


def _checked(desired: Desired, key: Key, snapshot: Key, *, wipe: bool) -> tuple[Volume, Volume]:
    volume, of = desired.get(key), desired.get(snapshot)
    assert isinstance(volume, Volume)
    assert isinstance(of, Volume)
    if not volume.cluster:
        raise UsageError(f"{key.words}: only volumes in Ceph can be rolled back; clone the snapshot in its place")
    if of.snapshot_of != volume.name:
        raise UsageError(f"{snapshot.words}: is no snapshot of {key.words}")
    snapshots = {f"volume {one.name}" for one in desired.volumes() if one.snapshot_of == volume.name}
    if users := [user for user in desired.users(key) if user not in snapshots]:
        raise ConflictError(f"{key.words}: in use by {', '.join(users)}, which would see it change: detach it first")
    if not wipe:
        raise UsageError(f"{key.words}: what was written since {of.name} is lost; pass --yes to confirm")
    return volume, of
