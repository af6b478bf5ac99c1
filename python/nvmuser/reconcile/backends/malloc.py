"""Volumes in the target's memory: `bdev_malloc`."""

from __future__ import annotations

from nvmuser.model.objects import Volume
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


class MallocBackend(SpdkBackend):
    name = "malloc"
    module = "malloc"

    def create(self, volume: Volume, below: Below) -> Request:
        return methods.malloc_create(volume.in_spdk, volume.size, volume.block_size, volume.uuid)
