"""Which volumes a change makes take space, and whether a pool is large enough for those that take all of it. Pure.

SPDK has the last word on a pool: its own metadata takes some of the base, which is not counted here.
"""

from __future__ import annotations

from nvmuser.errors import UsageError
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.model.sizes import approximate, format_size


def claiming(before: Desired, after: Desired, change: Change) -> set[Key]:
    """Keys of the volumes that are new, have grown, or are thin no more. Another change of a volume takes no space."""
    claims = {declared.key for declared in change.create}
    for updated in change.update:
        was, now = before.get(updated.key), after.get(updated.key)
        if isinstance(was, Volume) and isinstance(now, Volume) and (now.size > was.size or (was.thin and not now.thin)):
            claims.add(now.key)
    return claims


def check_pools(before: Desired, after: Desired, change: Change) -> None:
    """SPDK reserves all of a volume's space in its pool, unless it is thin, a snapshot or a clone.

    :raises UsageError: it cannot be, since the base of the pool is smaller.
    """
    claims = claiming(before, after, change)
    for pool in after.pools():
        reserving = [volume for volume in after.volumes() if volume.pool == pool.name and _reserves(volume, after)]
        mine = [volume for volume in reserving if volume.key in claims]
        base = size_of(pool.base, after)
        reserved = sum(volume.size for volume in reserving)
        if not mine or not base or reserved <= base:
            continue
        if mine[0].size > base or len(reserving) == 1:
            text = f"{format_size(mine[0].size)} is more than the {approximate(base)}"
        else:
            text = (
                f"with it, {approximate(reserved)} would be reserved for {len(reserving)} volumes, "
                f"of the {approximate(base)}"
            )
        raise UsageError(
            f"volume {mine[0].name}: {text} of pool {pool.name}, which is on volume {pool.base}; "
            "take less, or pass --thin to promise it all the same"
        )


def _reserves(volume: Volume, desired: Desired) -> bool:
    """A snapshot of it takes what it has over, and leaves it thin (`spdk_lvol_create_snapshot` in lib/lvol/lvol.c)."""
    if volume.thin or volume.snapshot_of or (volume.clone_of and not volume.inflated):
        return False
    return not any(other.snapshot_of == volume.name for other in desired.volumes())


def size_of(name: str, desired: Desired) -> int:
    """Bytes of a volume, at most; 0 when only a target knows."""
    volume = desired.get(Key("volume", name))
    assert isinstance(volume, Volume)
    if volume.size:
        return volume.size
    below = [size_of(one, desired) for one in (*volume.members, *filter(None, (volume.base,)))]
    if not below or 0 in below:
        return 0
    return sum(below) if volume.backend == "concat" else min(below)
