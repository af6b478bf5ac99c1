"""A volume whose base holds it encrypted: `bdev_crypto`, AES-XTS-256 in software."""

from __future__ import annotations

from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.backends.base import Below, SpdkBackend
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


def key_name(volume: Volume) -> str:
    """By which SPDK knows the volume's key (`nvmuser.reconcile.volume_keys` gives it)."""
    return f"nvmuser.{volume.uuid}"


class CryptBackend(SpdkBackend):
    name = "crypt"
    module = "crypto"
    reopens = True
    identified = False
    """SPDK derives its UUID from the base's."""

    def create(self, volume: Volume, below: Below) -> Request:
        return methods.crypto_create(volume.in_spdk, below[Key("volume", volume.base)], key_name(volume))
