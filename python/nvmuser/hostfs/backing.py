"""Which file or block device a volume is on, whatever its path is called: by links, one has many.

Two volumes on one would overwrite each other. The model compares paths alone, since only the machine knows more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from nvmuser.errors import ConflictError
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume

Identity = tuple[int, int] | int | str


def identity(path: str) -> Identity:
    """Device and inode of a file, the number of a block device; of what is not there yet, its path without links."""
    try:
        info = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return info.st_rdev if stat.S_ISBLK(info.st_mode) else (info.st_dev, info.st_ino)


class Owners:
    """Who has each file: one volume."""

    def __init__(self) -> None:
        self._volumes: dict[Identity, Volume] = {}

    def claim(self, volume: Volume) -> None:
        """:raises ConflictError: another volume has its file already."""
        owner = self._volumes.setdefault(identity(volume.path), volume)
        if owner.name != volume.name:
            other = f", as {owner.path}" if owner.path != volume.path else ""
            raise ConflictError(f"its path, {volume.path}, is volume {owner.name}'s already{other}")


def shared(volumes: Iterable[Volume]) -> dict[Key, ConflictError]:
    """By their keys, those whose file is an earlier one's."""
    owners, found = Owners(), dict[Key, ConflictError]()
    for volume in volumes:
        try:
            owners.claim(volume)
        except ConflictError as error:
            found[volume.key] = error
    return found
