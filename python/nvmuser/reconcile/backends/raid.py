"""Volumes over several volumes: `bdev_raid`, as a mirror and as a concatenation."""

from __future__ import annotations

from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.reconcile.calls import Needs
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


class _Raid(SpdkBackend):
    module = "raid"

    def create(self, volume: Volume, below: Below) -> Request:
        members = [below[Key("volume", member)] for member in volume.members]
        return methods.raid_create(volume.in_spdk, self.name, members, volume.uuid)

    def needs(self, volume: Volume) -> Needs:
        """It opens its members, of which any may be a file."""
        return Needs(events=True)


class Raid1Backend(_Raid):
    """With a superblock on its members, by which SPDK finds it again."""

    name = "raid1"
    made_once = True


class ConcatBackend(_Raid):
    """Without one: it holds nothing but its members' order, which is declared."""

    name = "concat"
    reopens = True
