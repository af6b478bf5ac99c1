"""Mirrors that lack a member: what of them is there, which members have missed writes, and how it is reported.

Pure. When a mirror is started without a member is `nvmuser.reconcile.engine`'s decision, with which calls
`nvmuser.reconcile.plan`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nvmuser.model.desired import Desired, Entry
from nvmuser.model.extent import MIRROR_HEAD
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.model.sizes import format_size
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual, Raid
from nvmuser.reconcile.calls import Problem


@dataclass(frozen=True)
class Mirror:
    """A mirror that is wanted, beside what SPDK has of it."""

    volume: Volume
    raid: Raid
    bdevs: tuple[str | None, ...]
    """SPDK's name of each member's bdev, in their order; None: it is not there."""

    def members(self, bdevs: frozenset[str]) -> tuple[str, ...]:
        """Our names of the members that these bdevs are."""
        return tuple(member for member, bdev in zip(self.volume.members, self.bdevs, strict=True) if bdev in bdevs)

    @property
    def in_sync(self) -> tuple[str, ...]:
        """Members that have all of the data, as far as SPDK knows."""
        return self.members(self.raid.in_sync)

    @property
    def stale(self) -> tuple[str, ...]:
        """Members that the mirror is without, or that are still being rebuilt."""
        return tuple(member for member in self.volume.members if member not in self.in_sync)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(member for member in self.stale if member not in self.rebuilding)

    @property
    def rebuilding(self) -> tuple[str, ...]:
        return self.members(frozenset({self.raid.rebuilding}) - {""})

    @property
    def foreign(self) -> tuple[str, ...]:
        """bdevs of the raid that are no members (any more)."""
        return tuple(bdev for bdev in self.raid.members if bdev not in self.bdevs)

    def to_json(self) -> dict[str, Any]:
        return {
            "volume": self.volume.name,
            "online": self.raid.online,
            "in_sync": list(self.in_sync),
            "missing": list(self.missing),
            "rebuilding": self.rebuilding[0] if self.rebuilding else None,
            "percent": self.raid.percent if self.rebuilding else None,
        }


def each(desired: Desired, actual: Actual) -> Iterator[Mirror]:
    """Every mirror that is wanted and of which SPDK has something."""
    for volume in desired.volumes():
        if found := find(volume, desired, actual):
            yield found


def find(volume: Volume, desired: Desired, actual: Actual) -> Mirror | None:
    """None: it is no mirror, or SPDK knows nothing of it."""
    raid = actual.raids.get(volume.in_spdk)
    if volume.backend != "raid1" or raid is None or raid.uuid != volume.uuid:
        return None
    names = []
    for member in volume.members:
        entry = desired.entries.get(Key("volume", member))
        found = backends.find(entry.object, desired, actual) if entry and isinstance(entry.object, Volume) else None
        names.append(found.name if found else None)
    return Mirror(volume, raid, tuple(names))


def why_not_without(mirror: Mirror) -> str:
    """Why a mirror must not be started with the members that it has; empty when it may."""
    if set(mirror.in_sync) - set(mirror.volume.stale):
        return ""
    newest = " or ".join(member for member in mirror.volume.members if member not in mirror.volume.stale)
    if not mirror.in_sync:
        return "not served: none of its members is there"
    return f"not served: only {', '.join(mirror.in_sync)} is there, which missed writes; bring {newest} back"


def too_small(mirror: Mirror, desired: Desired, actual: Actual) -> str:
    """Which member that is missing cannot have all of the data, in words; empty when each can, or no size is known."""
    shown = actual.find(mirror.volume.in_spdk)
    for name in mirror.missing if shown else ():
        member = desired.get(Key("volume", name))
        bdev = backends.find(member, desired, actual) if isinstance(member, Volume) else None
        size = bdev.size if bdev else getattr(member, "size", 0)
        if shown and 0 < size < shown.size + MIRROR_HEAD:
            return (
                f"member {name} is too small: it has {format_size(size)}, and the mirror takes "
                f"{format_size(shown.size + MIRROR_HEAD)} of each"
            )
    return ""


def noted(desired: Desired, actual: Actual) -> list[Entry]:
    """Entries of mirrors that run, with the members that miss writes; those that record it already are left out."""
    return [
        _with_stale(mirror, desired)
        for mirror in each(desired, actual)
        if mirror.raid.online and mirror.in_sync and mirror.stale != mirror.volume.stale
    ]


def waiting(desired: Desired, actual: Actual) -> bool:
    """Does SPDK wait for members of one?"""
    return any(not mirror.raid.online for mirror in each(desired, actual))


def degraded(desired: Desired, actual: Actual) -> tuple[list[Entry], dict[Key, Problem]]:
    """Entries of mirrors that may be started without what they wait for, and what is wrong with the others.

    To be recorded before they are started: what is missing then misses writes.
    """
    entries: list[Entry] = []
    refused: dict[Key, Problem] = {}
    for mirror in each(desired, actual):
        if mirror.raid.online or not desired.entries[mirror.volume.key].provisioned:
            continue
        if reason := why_not_without(mirror):
            refused[mirror.volume.key] = Problem(mirror.volume.key, reason)
        else:
            entries.append(_with_stale(mirror, desired))
    return entries, refused


def _with_stale(mirror: Mirror, desired: Desired) -> Entry:
    return replace(desired.entries[mirror.volume.key], object=replace(mirror.volume, stale=mirror.stale))
