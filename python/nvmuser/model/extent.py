"""How large a volume becomes when it is declared or grown: in whole units of its backend and clusters of its pool, and
as large as what it is a snapshot or a clone of. Which volumes are large enough for a pool. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nvmuser.errors import UsageError
from nvmuser.model.backends import BACKENDS
from nvmuser.model.blobstore import least_size
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Pool, Volume
from nvmuser.model.sizes import MIB, format_size, round_up

MIRROR_HEAD = MIB
"""Bytes of each member in front that a mirror keeps (module/bdev/raid/bdev_raid.h, RAID_BDEV_MIN_DATA_OFFSET_SIZE)."""

Find = Callable[[Key], AnyObject | None]
"""An object by its key; None when there is none."""


def rounded(volume: Volume, find: Find) -> Volume:
    """With a size that SPDK can give it, never less than what was asked for.

    SPDK counts some sizes in MiB and hands out pools in whole clusters (`lvol_resize` in lib/lvol/lvol.c).
    """
    unit = BACKENDS[volume.backend].unit
    pool = find(Key("pool", volume.pool)) if volume.pool else None
    if isinstance(pool, Pool):
        unit = max(unit, pool.cluster_size)
    return replace(volume, size=round_up(volume.size, unit)) if volume.size % unit else volume


def begun(volume: Volume, find: Find) -> Volume:
    """A new volume with its size.

    :raises UsageError: it is a snapshot or a clone of what cannot have one.
    """
    if volume.snapshot_of or volume.clone_of:
        volume = _derived(volume, find)
    return rounded(volume, find)


def _derived(volume: Volume, find: Find) -> Volume:
    def refuse(reason: str) -> UsageError:
        return UsageError(f"volume {volume.name}: {reason}")

    word, name = ("snapshot", volume.snapshot_of) if volume.snapshot_of else ("clone", volume.clone_of)
    source = find(Key("volume", name))
    if not isinstance(source, Volume):
        return volume  # `Desired.check` reports that it is missing
    if source.pool != volume.pool:
        where = f"in pool {source.pool}" if source.pool else "in no pool"
        raise refuse(f"a {word} is in the same pool as what it is of; volume {name} is {where}")
    if "snapshot_of" not in BACKENDS[source.backend].takes or source.backend != volume.backend:
        raise refuse(f"volume {name} is {BACKENDS[source.backend].article} {source.backend} volume, and has no {word}")
    if word == "clone" and not source.snapshot_of:
        raise refuse(
            f"volume {name} is no snapshot, and only snapshots have clones: `nvmuser volume snapshot NEW {name}` first"
        )
    if volume.size and (volume.size < source.size or (word == "snapshot" and volume.size != source.size)):
        raise refuse(f"a {word} begins with the size of what it is of, {format_size(source.size)}")
    return volume if volume.size else replace(volume, size=source.size)


def check_pool(pool: Pool, find: Find) -> None:
    """Check that a new pool has room on its base, where the size of that is known.

    :raises UsageError: it has not.
    """
    base, least = find(Key("volume", pool.base)), least_size(pool.cluster_size)
    size = _size(base, find) if isinstance(base, Volume) else 0
    if 0 < size < least:
        raise UsageError(
            f"pool {pool.name}: volume {pool.base} has {format_size(size)}, and with clusters of "
            f"{format_size(pool.cluster_size)} a pool takes {format_size(least)} or more; take a larger volume, or a "
            "smaller --cluster-size"
        )


def _size(volume: Volume, find: Find) -> int:
    """In bytes, also of what has the size of what it lies on; 0: not known."""
    if volume.size:
        return volume.size
    names = volume.members or ((volume.base,) if volume.base else ())
    below = [_size(one, find) if isinstance(one := find(Key("volume", name)), Volume) else 0 for name in names]
    if not below or 0 in below:
        return 0
    return max(0, min(below) - MIRROR_HEAD) if volume.backend == "raid1" else sum(below)
