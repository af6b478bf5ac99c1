"""Volumes on a file or a block device: `bdev_aio`.

Not `bdev_uring`: SPDK 26.01's answers FLUSH with success and does nothing (module/bdev/uring/bdev_uring.c).
"""

from __future__ import annotations

from nvmuser.model.objects import Volume
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.reconcile.calls import Needs
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


class FileBackend(SpdkBackend):
    """The file is made and grown by `nvmuser.hostfs.files`, before SPDK is asked to look at it."""

    name = "file"
    module = "aio"
    reopens = True

    def create(self, volume: Volume, below: Below) -> Request:
        return methods.aio_create(volume.in_spdk, volume.path, volume.block_size, volume.uuid)

    def needs(self, volume: Volume) -> Needs:
        return Needs(file=volume.path, events=True)

    def grow(self, volume: Volume, bdev: str) -> Request:
        return methods.aio_rescan(bdev)
