"""Which file or block device a volume is on, whatever its path is called, and which of them lie on one another.

Two volumes on one would overwrite each other, and so would one on a disk and one on a partition of it. The model
compares paths alone, since only the machine knows more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from nvmuser.errors import ConflictError
from nvmuser.hostfs.block_devices import Identity, place, stack
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume


class Owners:
    """Who has each file: one volume."""

    def __init__(self) -> None:
        self._stack = functools.cache(stack)
        self._volumes: dict[Identity, Volume] = {}
        self._below: dict[Identity, Volume] = {}
        """What volumes' files lie on → a volume whose file does."""

    def claim(self, volume: Volume) -> None:
        """:raises ConflictError: another volume has its file already, or what that lies on, or what lies on it."""
        mine, device = place(volume.path)
        below = self._stack(device)
        owner = self._volumes.get(mine, volume)
        if owner.name != volume.name:
            other = f", as {owner.path}" if owner.path != volume.path else ""
            raise ConflictError(f"its path, {volume.path}, is volume {owner.name}'s already{other}")
        below -= {mine}
        for one in self._volumes.keys() & below:
            owner = self._volumes[one]
            raise ConflictError(f"its path, {volume.path}, lies on {owner.path}, which is volume {owner.name}'s")
        if above := self._below.get(mine):
            raise ConflictError(f"its path, {volume.path}, holds {above.path}, which is volume {above.name}'s")
        self._volumes[mine] = volume
        self._below |= dict.fromkeys(below, volume)


def shared(volumes: Iterable[Volume]) -> dict[Key, ConflictError]:
    """By their keys, those whose file is an earlier one's."""
    owners, found = Owners(), dict[Key, ConflictError]()
    for volume in volumes:
        try:
            owners.claim(volume)
        except ConflictError as error:
            found[volume.key] = error
    return found
