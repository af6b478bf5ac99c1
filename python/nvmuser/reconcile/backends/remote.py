"""Volumes that are namespaces of a remote subsystem: bdevs that `bdev_nvme` makes when a remote is attached."""

from __future__ import annotations

from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.actual import Actual, Bdev
from nvmuser.reconcile.backends.base import Below, SpdkBackend


class RemoteBackend(SpdkBackend):
    name = "remote"
    stays = True
    """As long as the remote is attached."""

    def bdev_name(self, volume: Volume, below: Below) -> str:
        return f"{below[Key('remote', volume.remote)]}n{volume.remote_nsid}"

    def is_ours(self, volume: Volume, bdev: Bdev, below: Below, actual: Actual) -> bool:
        return below[Key("remote", volume.remote)] in actual.remotes

    def create(self, volume: Volume, below: Below) -> None:
        """It comes with the remote."""
