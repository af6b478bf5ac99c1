"""Snapshots and clones as they are declared: of one volume, or of all volumes of a controller."""

from __future__ import annotations

from nvmuser.errors import UsageError
from nvmuser.model.backends import BACKENDS
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume

_SAME = ("pool", "cluster", "pool_name", "block_size", "volatile")


def beside(of: Volume, name: str, **fields: str) -> Volume:
    """A volume in the same place."""
    return Volume(name, of.backend, **{field: getattr(of, field) for field in _SAME} | fields)


def source(desired: Desired, name: str) -> Volume:
    """What is to have a snapshot or a clone.

    :raises NotFoundError: there is no such volume.
    :raises UsageError: it has none.
    """
    volume = desired.get(Key("volume", name))
    assert isinstance(volume, Volume)
    if "snapshot_of" not in BACKENDS[volume.backend].takes:
        raise UsageError(
            f"volume {name} is {BACKENDS[volume.backend].article} {volume.backend} volume, and only volumes in a pool "
            "or in Ceph have snapshots and clones"
        )
    return volume


def together(desired: Desired, controller: str, name: str) -> Change:
    """A snapshot of each volume that a controller shows, but for those that are snapshots: *volume*-`name`.

    :raises NotFoundError: there is no such controller.
    :raises UsageError: one of its volumes has no snapshots, or it has nothing to be snapshotted.
    """
    shown = [source(desired, namespace.volume) for namespace in desired.controller(controller).namespaces]
    volumes = [volume for volume in shown if not volume.snapshot_of]
    if not volumes:
        raise UsageError(f"controller {controller}: shows no volume that can be written")
    return Change(create=tuple(beside(one, f"{one.name}-{name}", snapshot_of=one.name) for one in volumes))
