"""A volume in Ceph or in a pool made what one of its snapshots is. Nobody has it open meanwhile."""

from __future__ import annotations

import asyncio

from nvmuser.ceph import images
from nvmuser.errors import ConflictError, TargetNotRunning, UsageError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.model.placement import places
from nvmuser.reconcile import backends
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.rpc import methods
from nvmuser.rpc.client import Client
from nvmuser.rpc.methods import Request

_CLOSE_S = 60.0


async def roll_back(engine: Engine, key: Key, snapshot: Key, *, wipe: bool) -> Outcome:
    """Carry it out. Nothing else is changed meanwhile: its caller sees to that.

    :param wipe: what was written since may be lost.
    :raises NvmuserError: it has not been rolled back; it is open again.
    """
    desired = engine.desired()
    volume, of = _checked(desired, key, snapshot, wipe=wipe)
    rpcs = [rpc for name in places(desired)[key] if (rpc := engine.site(name).rpc)]
    try:
        if volume.cluster:
            for rpc in rpcs:
                await _close(rpc, volume, desired)
            await asyncio.to_thread(images.roll_back, desired.cluster_of(volume), volume, of.in_spdk)
        elif rpcs:
            await _replace(rpcs[0], volume, of, desired)
        else:
            raise TargetNotRunning(f"{key.words}: its pool is open in no target; start it with `nvmuser target start`")
    finally:
        outcome = await engine.reconcile()
    return outcome


async def _close(rpc: Client, volume: Volume, desired: Desired) -> None:
    bdev, request = backends.bdev_name(volume, desired), backends.delete(volume, desired)
    if request and any(one["name"] == bdev for one in await rpc.call("bdev_get_bdevs")):
        await _send(rpc, request)


async def _replace(rpc: Client, volume: Volume, of: Volume, desired: Desired) -> None:
    """A clone of the snapshot in the volume's place. Interrupted at any point, it can be done again: what is there by
    the clone's first name is one that was not finished."""
    bdev = backends.bdev_name(volume, desired)
    pool = bdev.partition("/")[0]
    clone = f"rollback-{volume.uuid}"
    there = {alias for one in await rpc.call("bdev_get_bdevs") for alias in one["aliases"]}
    if f"{pool}/{clone}" in there:
        await _send(rpc, methods.lvol_delete(f"{pool}/{clone}"))
    await _send(rpc, methods.lvol_clone(backends.bdev_name(of, desired), clone))
    if bdev in there:
        await _send(rpc, methods.lvol_delete(bdev))
    await _send(rpc, methods.lvol_rename(f"{pool}/{clone}", bdev.partition("/")[2]))


async def _send(rpc: Client, request: Request) -> None:
    await rpc.call(request.method, request.params, timeout=_CLOSE_S)


def _checked(desired: Desired, key: Key, snapshot: Key, *, wipe: bool) -> tuple[Volume, Volume]:
    volume, of = desired.get(key), desired.get(snapshot)
    assert isinstance(volume, Volume)
    assert isinstance(of, Volume)
    if not (volume.cluster or volume.pool):
        raise UsageError(f"{key.words}: only volumes in Ceph or in a pool have snapshots, and can be rolled back")
    if of.snapshot_of != volume.name:
        raise UsageError(f"{snapshot.words}: is no snapshot of {key.words}")
    snapshots = {f"volume {one.name}" for one in desired.volumes() if one.snapshot_of == volume.name}
    if users := [user for user in desired.users(key) if user not in snapshots]:
        raise ConflictError(f"{key.words}: in use by {', '.join(users)}, which would see it change: detach it first")
    if not wipe:
        raise UsageError(f"{key.words}: what was written since {of.name} is lost; pass --yes to confirm")
    return volume, of
