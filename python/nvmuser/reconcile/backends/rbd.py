"""Volumes on images in a Ceph cluster, their snapshots and clones: `bdev_rbd`, which set-up builds apart from SPDK."""

from __future__ import annotations

from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


class RbdBackend(SpdkBackend):
    """Images are made, grown and freed from who held them by `nvmuser.reconcile.clusters`, before SPDK opens them."""

    name = "rbd"
    module = "rbd"
    reopens = True

    def create(self, volume: Volume, below: Below) -> Request:
        snapshot = volume.in_spdk if volume.snapshot_of else ""
        place = (below[Key("cluster", volume.cluster)], volume.pool_name, volume.image)
        return methods.rbd_create(volume.in_spdk, *place, volume.block_size, volume.uuid, snapshot=snapshot)

    def grow(self, volume: Volume, bdev: str) -> Request:
        return methods.rbd_rescan(bdev)
