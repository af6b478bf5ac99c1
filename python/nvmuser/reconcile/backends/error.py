"""A volume that can be made to fail by `nvmuser rpc bdev_error_inject_error`, for tests: `bdev_error`."""

from __future__ import annotations

from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


class ErrorBackend(SpdkBackend):
    name = "error"
    module = "error"
    reopens = True
    passes_on = True
    identified = False
    """SPDK ignores the UUID that it is given and derives one from the base's."""

    def bdev_name(self, volume: Volume, below: Below) -> str:
        """SPDK's own: it takes no other."""
        return f"EE_{below[Key('volume', volume.base)]}"

    def create(self, volume: Volume, below: Below) -> Request:
        return methods.error_create(below[Key("volume", volume.base)])
