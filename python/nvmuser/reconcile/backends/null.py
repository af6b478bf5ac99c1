"""Volumes that keep nothing: `bdev_null`, for measurements."""

from __future__ import annotations

from nvmuser.model.objects import Volume
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


class NullBackend(SpdkBackend):
    name = "null"
    module = "null"

    def create(self, volume: Volume, below: Below) -> Request:
        return methods.null_create(volume.in_spdk, volume.size, volume.block_size, volume.uuid)

    def grow(self, volume: Volume, bdev: str) -> Request:
        return methods.null_resize(bdev, volume.size)
