"""How each backend is made in SPDK: one class for each, in a module of its own, and a registry of them.

Owns what all of them share: the names of what a volume lies on, and whether a bdev is ours. Pure; the order of things
is `nvmuser.reconcile.plan`'s. What a person may declare of each is `nvmuser.model.backends`'.
"""

from __future__ import annotations

from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.named import NamedInSpdk
from nvmuser.model.objects import AnyObject, Cluster, Controller, Pool, Remote, Volume
from nvmuser.reconcile.actual import Actual, Bdev
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.reconcile.backends.crypt import CryptBackend
from nvmuser.reconcile.backends.delay import DelayBackend
from nvmuser.reconcile.backends.error import ErrorBackend
from nvmuser.reconcile.backends.file import FileBackend
from nvmuser.reconcile.backends.lvol import LvolBackend
from nvmuser.reconcile.backends.malloc import MallocBackend
from nvmuser.reconcile.backends.null import NullBackend
from nvmuser.reconcile.backends.raid import ConcatBackend, Raid1Backend
from nvmuser.reconcile.backends.rbd import RbdBackend
from nvmuser.reconcile.backends.remote import RemoteBackend
from nvmuser.reconcile.calls import Needs
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request

REGISTRY: dict[str, SpdkBackend] = {
    backend.name: backend
    for backend in (
        FileBackend(),
        MallocBackend(),
        NullBackend(),
        LvolBackend(),
        RemoteBackend(),
        RbdBackend(),
        Raid1Backend(),
        ConcatBackend(),
        CryptBackend(),
        DelayBackend(),
        ErrorBackend(),
    )
}


_NOTHING = Below({Key("pool", ""): "", Key("remote", ""): ""}, True)


def bdev_name(volume: Volume, desired: Desired) -> str:
    """What SPDK calls it. Backends that are nothing but a view of something else have SPDK's names."""
    return REGISTRY[volume.backend].bdev_name(volume, _below(volume, desired))


def _below(volume: Volume, desired: Desired, actual: Actual | None = None) -> Below:
    """What it lies on; what is not known by our name.

    :param actual: what SPDK has, where it matters.
    """
    if not volume.depends_on and not volume.clone_of:
        return _NOTHING  # most volumes are files, and are asked for often
    found: dict[Key, str] = {}
    for name in filter(None, (*volume.members, volume.base, volume.snapshot_of, volume.clone_of)):
        below = _volume(name, desired)
        found[Key("volume", name)] = bdev_name(below, desired) if below else name
    for kind, name in (("pool", volume.pool), ("remote", volume.remote), ("cluster", volume.cluster)):
        if not name:
            continue
        key = Key(kind, name)
        entry = desired.entries.get(key)
        found[key] = entry.object.in_spdk if entry and isinstance(entry.object, NamedInSpdk) else key.name
    return Below(found, actual is None or erases(volume.pool, desired, actual))


def erases(pool: str, desired: Desired, actual: Actual) -> bool:
    """Is gone what is discarded of a pool's base, as far as can be seen? Without it, old data would be read in new
    volumes. A remote may keep what is deallocated (NVM Command Set Specification, Deallocate)."""
    entry = desired.entries.get(Key("pool", pool))
    below = [_volume(entry.object.base, desired)] if entry and isinstance(entry.object, Pool) else []
    while below:
        volume = below.pop()
        bdev = find(volume, desired, actual) if volume else None
        # librbd leaves out what is less than its granularity of discards, 64 KiB.
        if volume is None or volume.backend in ("remote", "rbd") or (bdev and not bdev.unmaps):
            return False
        if volume.pool:  # which says that it unmaps whatever its base does
            return erases(volume.pool, desired, actual)
        below += [_volume(name, desired) for name in (*volume.members, *filter(None, (volume.base,)))]
    return True


def _volume(name: str, desired: Desired) -> Volume | None:
    """Wanted, or being deleted."""
    entry = desired.entries.get(Key("volume", name))
    return entry.object if entry and isinstance(entry.object, Volume) else None


def find(volume: Volume, desired: Desired, actual: Actual) -> Bdev | None:
    return actual.find(bdev_name(volume, desired))


def is_ours(volume: Volume, bdev: Bdev, desired: Desired, actual: Actual) -> bool:
    """Is the bdev of that name this volume?"""
    backend = REGISTRY[volume.backend]
    if backend.identified:
        return backend.is_ours(volume, bdev, _below(volume, desired), actual)
    base = _volume(volume.base, desired)
    found = find(base, desired, actual) if base else None
    return base is not None and found is not None and is_ours(base, found, desired, actual)


def create(volume: Volume, desired: Desired, actual: Actual) -> Request | None:
    """None: it comes with what it lies on."""
    return REGISTRY[volume.backend].create(volume, _below(volume, desired, actual))


def needs(volume: Volume) -> Needs:
    """What the creation of a volume takes besides SPDK."""
    return REGISTRY[volume.backend].needs(volume)


def grow(volume: Volume, desired: Desired) -> Request | None:
    """None: this backend cannot."""
    return REGISTRY[volume.backend].grow(volume, bdev_name(volume, desired))


def delete(volume: Volume, desired: Desired) -> Request | None:
    """None: it goes with what it lies on."""
    return REGISTRY[volume.backend].delete(volume, bdev_name(volume, desired))


def close(volume: Volume, desired: Desired) -> Request | None:
    """What it holds stays, for another target. None: it goes with what it lies on."""
    return REGISTRY[volume.backend].close(volume, bdev_name(volume, desired))


def set_limits(volume: Volume, desired: Desired) -> Request:
    limits = volume.limits
    name = bdev_name(volume, desired)
    return methods.set_limits(name, limits.iops, limits.mbps, limits.read_mbps, limits.write_mbps)


def made_once(one: AnyObject) -> bool:
    """Does making it a second time lose what it holds?"""
    return one.kind == "pool" or (isinstance(one, Volume) and REGISTRY[one.backend].made_once)


def kept_on_a_disk(entry: Entry) -> bool:
    """May SPDK have made it, in such a way that it outlives every target?"""
    return made_once(entry.object) and (entry.asked or entry.provisioned)


def to_examine(desired: Desired, actual: Actual) -> list[str]:
    """Names of bdevs that are not there yet and hold SPDK's own metadata, which it has to look for when they come.

    SPDK is configured to look nowhere else: what a guest writes to its volume must not become a pool of the host's.
    """
    below: set[Key] = set()
    for entry in desired.entries.values():
        one = entry.object
        passes_on = isinstance(one, Volume) and REGISTRY[one.backend].passes_on
        if (made_once(one) and entry.provisioned) or passes_on:
            below |= {key for key in one.depends_on if key.kind == "volume"}
    volumes = [wanted for wanted in desired.wanted() if isinstance(wanted, Volume) and wanted.key in below]
    return [bdev_name(volume, desired) for volume in volumes if find(volume, desired, actual) is None]


def present(one: AnyObject, desired: Desired, actual: Actual) -> bool:
    """Does SPDK have it, as ours?"""
    if isinstance(one, Controller):
        found = actual.subsystems.get(one.nqn)
        return found is not None and found.serial == one.serial
    if isinstance(one, Volume):
        bdev = find(one, desired, actual)
        ours = bdev is not None and is_ours(one, bdev, desired, actual)
        return (ours or actual.is_incomplete(one.in_spdk, one.uuid)) and not REGISTRY[one.backend].stays
    if isinstance(one, Pool):
        return one.in_spdk in actual.lvstores
    if isinstance(one, Cluster):
        return one.in_spdk in actual.clusters
    return isinstance(one, Remote) and one.in_spdk in actual.remotes
