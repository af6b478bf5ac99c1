"""Volumes in a pool, their snapshots and clones: SPDK's logical volumes."""

from __future__ import annotations

from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.actual import Actual, Bdev
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


class LvolBackend(SpdkBackend):
    name = "lvol"
    module = "lvol"
    made_once = True

    def bdev_name(self, volume: Volume, below: Below) -> str:
        return f"{below[Key('pool', volume.pool)]}/{volume.in_spdk}"

    def is_ours(self, volume: Volume, bdev: Bdev, below: Below, actual: Actual) -> bool:
        """SPDK makes up the UUIDs of these; the pool is ours and so the name in it is."""
        store = actual.lvstores.get(below[Key("pool", volume.pool)])
        return store is not None and store.uuid == bdev.lvstore

    def create(self, volume: Volume, below: Below) -> Request:
        if volume.snapshot_of:
            return methods.lvol_snapshot(below[Key("volume", volume.snapshot_of)], volume.in_spdk)
        if volume.clone_of:
            return methods.lvol_clone(below[Key("volume", volume.clone_of)], volume.in_spdk)
        pool = below[Key("pool", volume.pool)]
        return methods.lvol_create(volume.in_spdk, pool, volume.size, thin=volume.thin, write_zeroes=not below.erases)

    def grow(self, volume: Volume, bdev: str) -> Request:
        return methods.lvol_resize(bdev, volume.size)

    def close(self, volume: Volume, bdev: str) -> None:
        """SPDK closes the whole pool when its base goes (module/bdev/lvol/vbdev_lvol.c, `vbdev_lvs_hotremove_cb`)."""
