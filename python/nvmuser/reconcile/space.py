"""What has been promised to volumes in pools, and what is there. Pure."""

from __future__ import annotations

import os

from nvmuser.hostfs.space import Space, allocated
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual, Bdev


def pools(desired: Desired, actual: Actual) -> dict[str, Space]:
    """Of each pool that SPDK has, by its name. A thin volume, a clone, and what has snapshots may still be written."""
    found: dict[str, Space] = {}
    for pool in desired.pools():
        store = actual.lvstores.get(pool.name)
        if store is None:
            continue
        inside = [volume for volume in desired.volumes() if volume.pool == pool.name and not volume.snapshot_of]
        promised = {
            volume.name: bdev.size - bdev.allocated_clusters * store.cluster_size
            for volume in inside
            if (bdev := backends.find(volume, desired, actual))
        }
        total, free = store.total_clusters * store.cluster_size, store.free_clusters * store.cluster_size
        found[pool.name] = Space(f"pool {pool.name}", total, free, sum(promised.values()), tuple(promised))
    return found


def allocated_bytes(volume: Volume, bdev: Bdev | None, actual: Actual | None) -> int | None:
    """What a volume takes of its pool or file system; None where it takes none, or where that is not known."""
    if volume.backend == "file":
        try:
            return allocated(os.stat(volume.path))
        except OSError:
            return None
    store = actual.lvstores.get(volume.pool) if actual else None
    return bdev.allocated_clusters * store.cluster_size if store and bdev and bdev.lvstore else None
