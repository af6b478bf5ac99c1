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
        store = actual.lvstores.get(pool.in_spdk)
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
    stores = [store for store in actual.lvstores.values() if bdev and store.uuid == bdev.lvstore] if actual else []
    return bdev.allocated_clusters * stores[0].cluster_size if bdev and stores else None
