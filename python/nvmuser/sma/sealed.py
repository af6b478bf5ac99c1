"""Volumes that are attached with a key: one of the backend `crypt` over the volume that the call names.

It is made when it is attached and taken away when it is detached; what it has written stays, on the volume below, and
is read again with the same key. The key is kept with those that nvmuser makes, as long as the volume is attached, since
the next target has to have it; it is in no message.
"""

from __future__ import annotations

import uuid
from typing import Any

from nvmuser.errors import NvmuserError, UsageError
from nvmuser.hostfs import volume_keys
from nvmuser.hostfs.volume_keys import VolumeKey
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.sma.messages import AES_XTS


def key_of(crypto: Any) -> VolumeKey:
    """The key of a call: hexadecimal digits, as SPDK's RPC has them.

    :raises UsageError: it is of another kind than ours.
    """
    if crypto.cipher != AES_XTS or crypto.tweak_mode:
        raise UsageError("volume.crypto: there is AES_XTS alone here, with the tweak mode SIMPLE_LBA")
    try:
        return VolumeKey.parse(crypto.key + crypto.key2)
    except UsageError:
        raise UsageError("volume.crypto: key and key2 have 64 hexadecimal digits each, and are not equal") from None


def over(desired: Desired, base: Volume) -> Volume | None:
    """What shows a volume decrypted."""
    return next((one for one in desired.volumes() if one.backend == "crypt" and one.base == base.name), None)


def declared(base: Volume, key: VolumeKey, state: StateDir) -> Volume:
    """A new one, whose key is kept when this returns.

    :raises SetupError: it cannot be kept.
    """
    volume = Volume(f"{base.name}.open", "crypt", base=base.name, uuid=str(uuid.uuid4()), volatile=base.volatile)
    volume_keys.keep(volume, key, state)
    return volume


def check(volume: Volume, key: VolumeKey, state: StateDir) -> None:
    """:raises UsageError: it is attached with another key."""
    try:
        same = volume_keys.load(volume, state) == key
    except NvmuserError:
        same = False
    if not same:
        raise UsageError(f"volume {volume.base}: it is attached with another key")
