"""Pools on files: room for the metadata that SPDK writes whenever it opens one after a crash.

A backing file is sparse. Were those writes to find no room on its file system, the pool would not come back, and with
it every disk in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from nvmuser.errors import NvmuserError
from nvmuser.hostfs.reserve import reserve
from nvmuser.model.blobstore import head_size
from nvmuser.model.desired import Desired
from nvmuser.model.extent import MIRROR_HEAD
from nvmuser.model.keys import Key
from nvmuser.model.objects import Pool, Volume
from nvmuser.model.sizes import approximate
from nvmuser.reconcile.calls import Problem


def reserve_all(desired: Desired) -> dict[Key, Problem]:
    """For every pool that has been made. Returns those that have no such room, with the way out."""
    problems: dict[Key, Problem] = {}
    for pool in desired.pools():
        if not desired.entries[pool.key].provisioned:
            continue
        for volume, length in parts(pool, desired):
            try:
                reserve(volume.path, length)
            except NvmuserError as error:
                text = (
                    f"{error}: its metadata needs {approximate(length)} there, without which it does not come back "
                    "after a crash; free some, then `nvmuser reconcile`"
                )
                problems[pool.key] = Problem(pool.key, text)
    return problems


def parts(pool: Pool, desired: Desired) -> Iterator[tuple[Volume, int]]:
    """The file volumes that hold the beginning of a pool's metadata, and how many bytes of each in front.

    Where a volume of another pool lies in its file is known to that pool alone.
    """
    base = _volume(pool.base, desired)
    if base:
        files = [(volume, offset) for volume, offset in _files(base, desired) if volume.size]
        size = sum(volume.size for volume, _ in files)
        for volume, offset in files:
            yield volume, offset + head_size(size, pool.cluster_size)


def _files(volume: Volume, desired: Desired) -> Iterator[tuple[Volume, int]]:
    """File volumes below, each with the bytes in front of what is passed on of it."""
    if volume.backend == "file":
        yield volume, 0
    more = MIRROR_HEAD if volume.backend == "raid1" else 0
    below = volume.members or ((volume.base,) if volume.backend in ("delay", "error") else ())
    for name in below:
        if one := _volume(name, desired):
            yield from ((file, offset + more) for file, offset in _files(one, desired))


def _volume(name: str, desired: Desired) -> Volume | None:
    entry = desired.entries.get(Key("volume", name))
    return entry.object if entry and isinstance(entry.object, Volume) else None
