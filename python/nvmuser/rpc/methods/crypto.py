"""Encrypted bdevs and their keys. Errors and units: see the package."""

from __future__ import annotations

from nvmuser.rpc.methods.request import Request


def add_volume_key(name: str, key: str, key2: str) -> Request:
    """Give SPDK a key (lib/accel/accel_rpc.c), which it does not show again (our patch).

    :param key: of the data, and `key2` of the tweak: 64 hexadecimal digits each, for AES-XTS-256.

    Errors: EEXIST, in words, for a name in use.
    """
    params = {"name": name, "cipher": "AES_XTS", "key": key, "key2": key2}
    return Request("accel_crypto_key_create", params)


def remove_volume_key(name: str) -> Request:
    """Forget a key (lib/accel/accel_rpc.c).

    Errors: while a bdev uses it.
    """
    return Request("accel_crypto_key_destroy", {"key_name": name})


def crypto_create(name: str, base: str, key_name: str) -> Request:
    """A bdev that encrypts what is written to its base (module/bdev/crypto/vbdev_crypto_rpc.c), block by block.

    Errors: EEXIST for a name in use; ENODEV when there is no key of this name.
    """
    return Request("bdev_crypto_create", {"name": name, "base_bdev_name": base, "key_name": key_name})
