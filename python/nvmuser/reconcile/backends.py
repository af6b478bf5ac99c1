"""How each backend is told to SPDK: names, creation, growth, deletion. Pure; the order of things is
`nvmuser.reconcile.plan`'s."""

from __future__ import annotations

from nvmuser.model.desired import Desired
from nvmuser.model.objects import AnyObject, Controller, Volume
from nvmuser.reconcile.actual import Actual, Bdev
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request

KEEPS_IN_SPDK = ("lvol", "raid1")
"""Backends whose volumes come back by themselves when what they lie on is there: SPDK finds its own metadata.
Making one anew would destroy its data, so it is made once only."""


def bdev_name(volume: Volume, desired: Desired) -> str:
    """What SPDK calls it. Backends that are nothing but a view of something else have SPDK's names."""
    if volume.backend == "lvol":
        return f"{volume.pool}/{volume.name}"
    if volume.backend == "remote":
        return f"{volume.remote}n{volume.remote_nsid}"
    if volume.backend == "error":
        return f"EE_{_below(volume.base, desired)}"
    return volume.name


def _below(name: str, desired: Desired) -> str:
    entry = desired.entries.get(f"volume/{name}")
    return bdev_name(entry.object, desired) if entry and isinstance(entry.object, Volume) else name


def find(volume: Volume, desired: Desired, actual: Actual) -> Bdev | None:
    return actual.find(bdev_name(volume, desired))


def is_ours(volume: Volume, bdev: Bdev, desired: Desired, actual: Actual) -> bool:
    """Is the bdev of that name this volume? UUIDs are random, so that one that is equal cannot be chance."""
    if volume.backend == "remote":
        return volume.remote in actual.remotes
    if volume.backend == "lvol":
        # SPDK makes up the UUIDs of these; the pool is ours and so the name in it is.
        store = actual.lvstores.get(volume.pool)
        return store is not None and store.uuid == bdev.lvstore
    if volume.backend == "error":
        # SPDK ignores the UUID that it is given and derives one from the base's.
        below = desired.entries.get(f"volume/{volume.base}")
        base = below.object if below else None
        found = find(base, desired, actual) if isinstance(base, Volume) else None
        return isinstance(base, Volume) and found is not None and is_ours(base, found, desired, actual)
    return bdev.uuid == volume.uuid


def create(volume: Volume, desired: Desired) -> Request | None:
    """None: it comes with what it lies on."""
    name, uuid = bdev_name(volume, desired), volume.uuid
    match volume.backend:
        case "file":
            return methods.aio_create(name, volume.path, volume.block_size, uuid)
        case "malloc":
            return methods.malloc_create(name, volume.size, volume.block_size, uuid)
        case "null":
            return methods.null_create(name, volume.size, volume.block_size, uuid)
        case "lvol" if volume.snapshot_of:
            return methods.lvol_snapshot(_below(volume.snapshot_of, desired), volume.name)
        case "lvol" if volume.clone_of:
            return methods.lvol_clone(_below(volume.clone_of, desired), volume.name)
        case "lvol":
            return methods.lvol_create(volume.name, volume.pool, volume.size, thin=volume.thin)
        case "raid1" | "concat":
            members = [_below(one, desired) for one in volume.members]
            return methods.raid_create(name, volume.backend, members, uuid)
        case "delay":
            return methods.delay_create(name, _below(volume.base, desired), volume.latency_us, uuid)
        case "error":
            return methods.error_create(_below(volume.base, desired))
    return None


def grow(volume: Volume, desired: Desired) -> Request | None:
    """None: this backend cannot."""
    name = bdev_name(volume, desired)
    match volume.backend:
        case "file":
            return methods.aio_rescan(name)
        case "null":
            return methods.null_resize(name, volume.size)
        case "lvol":
            return methods.lvol_resize(name, volume.size)
    return None


def delete(volume: Volume, desired: Desired) -> Request | None:
    """None: it goes with what it lies on."""
    module = {"file": "aio", "raid1": "raid", "concat": "raid", "remote": ""}.get(volume.backend, volume.backend)
    return methods.delete_bdev(module, bdev_name(volume, desired)) if module else None


def set_limits(volume: Volume, desired: Desired) -> Request:
    limits = volume.limits
    name = bdev_name(volume, desired)
    return methods.set_limits(name, limits.iops, limits.mbps, limits.read_mbps, limits.write_mbps)


def made_once(one: AnyObject) -> bool:
    """Does making it a second time lose what it holds?"""
    return one.kind == "pool" or (isinstance(one, Volume) and one.backend in KEEPS_IN_SPDK)


def to_examine(desired: Desired, actual: Actual) -> list[str]:
    """Names of bdevs that are not there yet and hold SPDK's own metadata, which it has to look for when they come.

    SPDK is told not to look anywhere else: what a guest writes to its volume must not become a pool of the host's.
    """
    below: set[str] = set()
    for entry in desired.entries.values():
        one = entry.object
        if (made_once(one) and entry.provisioned) or (isinstance(one, Volume) and one.backend in ("delay", "error")):
            below |= {key for key in one.below if key.startswith("volume/")}
    volumes = [one for one in desired.wanted() if isinstance(one, Volume) and one.key in below]
    return [bdev_name(one, desired) for one in volumes if find(one, desired, actual) is None]


def present(one: AnyObject, desired: Desired, actual: Actual) -> bool:
    """Does SPDK have it, as ours?"""
    if isinstance(one, Controller):
        found = actual.subsystems.get(one.nqn)
        return found is not None and found.serial == one.serial
    if isinstance(one, Volume):
        bdev = find(one, desired, actual)
        # A remote's namespace is there as long as the remote is, whether it is wanted or not.
        return bdev is not None and is_ours(one, bdev, desired, actual) and one.backend != "remote"
    return one.name in (actual.lvstores if one.kind == "pool" else actual.remotes)
