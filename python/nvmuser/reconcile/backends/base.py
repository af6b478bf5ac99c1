"""What a backend is to SPDK: the class that each backend's module derives from. Pure: requests are made, not sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.actual import Actual, Bdev
from nvmuser.reconcile.calls import NO_NEEDS, Needs
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


@dataclass(frozen=True)
class Below:
    """What a volume lies on."""

    names: Mapping[Key, str]
    """SPDK's: of bdevs, lvstores, controllers of remotes."""
    erases: bool = True
    """What is discarded there is gone, so that nobody who gets the space next can read it."""

    def __getitem__(self, key: Key) -> str:
        return self.names[key]


class SpdkBackend:
    """How volumes of one backend are named, known, made and taken away.

    Derive, and add an instance to the registry in `nvmuser.reconcile.backends`; what a person may declare is an entry
    of `nvmuser.model.backends`.
    """

    name: ClassVar[str]
    module: ClassVar[str] = ""
    """As in `bdev_<module>_delete`; empty: it goes with what it lies on."""
    made_once: ClassVar[bool] = False
    """It comes back by itself when what it lies on is there, because SPDK finds its own metadata. Making it a second
    time would destroy its data."""
    passes_on: ClassVar[bool] = False
    """It shows what it lies on as it is, so that SPDK's metadata may be found on it."""
    identified: ClassVar[bool] = True
    """SPDK gives it the UUID that we ask for. Else it is ours if what it lies on is."""

    stays: ClassVar[bool] = False
    """Its bdev is there whether the volume is wanted or not, so that a deletion does not wait for its end."""

    reopens: ClassVar[bool] = False
    """Its bdev can be deleted and made again, and holds the same as before."""

    def bdev_name(self, volume: Volume, below: Below) -> str:
        """What SPDK calls it."""
        return volume.in_spdk

    def is_ours(self, volume: Volume, bdev: Bdev, below: Below, actual: Actual) -> bool:
        """Is the bdev of that name this volume? UUIDs are random, so that one that is equal cannot be chance."""
        return bdev.uuid == volume.uuid

    def create(self, volume: Volume, below: Below) -> Request | None:
        """None: it comes with what it lies on."""
        raise NotImplementedError

    def needs(self, volume: Volume) -> Needs:
        """What its creation takes besides SPDK."""
        return NO_NEEDS

    def grow(self, volume: Volume, bdev: str) -> Request | None:
        """To the size that is wanted. None: this backend cannot."""
        return None

    def delete(self, volume: Volume, bdev: str) -> Request | None:
        """None: it goes with what it lies on."""
        return methods.delete_bdev(self.module, bdev) if self.module else None

    def close(self, volume: Volume, bdev: str) -> Request | None:
        """Without deleting what it holds, which another target opens next. None: it goes with what it lies on."""
        return self.delete(volume, bdev)
