"""A volume made slower, for tests: `bdev_delay`."""

from __future__ import annotations

from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


class DelayBackend(SpdkBackend):
    name = "delay"
    module = "delay"
    reopens = True
    passes_on = True

    def create(self, volume: Volume, below: Below) -> Request:
        return methods.delay_create(volume.in_spdk, below[Key("volume", volume.base)], volume.latency_us, volume.uuid)
