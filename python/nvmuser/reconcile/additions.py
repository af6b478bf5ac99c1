"""What has to be there, from the bottom up: created where it is missing, adopted where it matches, else repaired. Pure.

Controllers, which are built on all of it, are `nvmuser.reconcile.exports`', remotes `nvmuser.reconcile.attachments`'.
"""

from __future__ import annotations

from collections.abc import Mapping

from nvmuser.model.backends import BACKENDS
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import NO_LIMITS, AnyObject, Cluster, Controller, Pool, Remote, Volume
from nvmuser.reconcile import attachments, backends, mirrors
from nvmuser.reconcile.actual import Actual, Bdev
from nvmuser.reconcile.calls import Needs
from nvmuser.reconcile.draft import Draft
from nvmuser.reconcile.exports import Exports
from nvmuser.reconcile.ownership import Ownership
from nvmuser.reconcile.remotes import Routes
from nvmuser.rpc import methods


class Additions:
    """Adds the calls that make and repair things to a draft."""

    def __init__(
        self,
        desired: Desired,
        actual: Actual,
        ownership: Ownership,
        draft: Draft,
        exports: Exports,
        *,
        without: frozenset[Key],
        routes: Routes,
        refused: Mapping[Key, str],
    ) -> None:
        """
        :param without: keys of mirrors to be started without the members that are missing.
        :param routes: where the paths of remotes lead.
        :param refused: keys of volumes that must not be opened, and why.
        """
        self._desired = desired
        self._actual = actual
        self._ownership = ownership
        self._draft = draft
        self._exports = exports
        self._without = without
        self._routes = routes
        self._refused = refused
        self._ready: dict[Key, tuple[int, ...] | None] = {}

    def plan(self) -> None:
        """Plan everything that is wanted."""
        closed = self._desired.closed
        for wanted in self._desired.wanted():
            if wanted.key not in closed:
                self.ensure(wanted.key)

    def ensure(self, key: Key) -> tuple[int, ...] | None:
        """The calls after which it is there; None when it cannot be yet, or at all."""
        if key not in self._ready:
            self._ready[key] = None  # what lies on itself is never ready; `Desired.check` refuses it
            wanted = self._desired.get(key)
            lies_on = () if isinstance(wanted, Controller) and wanted.away else wanted.depends_on
            before = [self.ensure(below) for below in lies_on]
            ready = [call for calls in before if calls is not None for call in calls]
            ready += [call for below in lies_on for call in self._freed(below)]
            if isinstance(wanted, Controller):
                self._ready[key] = self._exports.ensure(wanted, self.ensure)
            elif None in before and not self._stands(wanted):
                self._draft.waiting.add(key)
            elif isinstance(wanted, Volume):
                self._ready[key] = self._volume(wanted, ready)
            elif isinstance(wanted, Pool):
                self._ready[key] = self._pool(wanted, ready)
            elif isinstance(wanted, Remote):
                self._ready[key] = attachments.ensure(wanted, self._actual, self._routes, self._draft)
            elif isinstance(wanted, Cluster):
                # Connected to beforehand (`nvmuser.reconcile.clusters`), and only where a volume of it is wanted.
                self._ready[key] = () if wanted.in_spdk in self._actual.clusters else None
        return self._ready[key]

    def _freed(self, key: Key) -> list[int]:
        """The calls after which a volume has no user that goes."""
        return self._draft.released(self._ownership.bdev_name(key))

    def _stands(self, wanted: AnyObject) -> bool:
        """Is it there, or can it be, although a part of what it lies on is not?"""
        if not isinstance(wanted, Volume) or wanted.backend != "raid1":
            return False
        raid = self._actual.raids.get(wanted.in_spdk)
        return wanted.key in self._without or (raid is not None and raid.online)

    def _volume(self, volume: Volume, after: list[int]) -> tuple[int, ...] | None:
        bdev = backends.find(volume, self._desired, self._actual)
        if bdev is None and volume.key in self._without:
            # After nothing: the members that are there are in it, and the others do not come.
            return (self._draft.add("start", methods.raid_start_degraded(volume.in_spdk), volume.key),)
        if bdev is None:
            return self._volume_created(volume, after)
        if not self._ownership.bdev(volume):
            self._draft.conflict(
                volume.key,
                f"bdev {bdev.name} exists and is not ours (UUID {bdev.uuid}); delete it, or choose another name",
            )
            return None
        if volume.key in self._refused:
            self._draft.conflict(volume.key, self._refused[volume.key])
            return None
        self._draft.adopted.add(volume.key)
        return self._volume_repaired(volume, bdev)

    def _volume_created(self, volume: Volume, after: list[int]) -> tuple[int, ...] | None:
        request = backends.create(volume, self._desired, self._actual)
        once = backends.made_once(volume)
        if request is None or (once and self._desired.entries[volume.key].provisioned):
            self._draft.waiting.add(volume.key)
            return None
        needs = backends.needs(volume)
        calls = [self._draft.add("create", request, volume.key, after, needs=needs, provisions=once)]
        if volume.limits != NO_LIMITS:
            calls.append(self._draft.add("limit", backends.set_limits(volume, self._desired), volume.key, calls))
        return tuple(calls)

    def _volume_repaired(self, volume: Volume, bdev: Bdev) -> tuple[int, ...]:
        draft, calls = self._draft, list[int]()
        if bdev.block_size != volume.block_size and BACKENDS[volume.backend].sized:
            draft.conflict(volume.key, f"has blocks of {bdev.block_size} bytes instead of {volume.block_size}")
        elif volume.size and bdev.size < volume.size:
            if request := backends.grow(volume, self._desired):
                calls.append(draft.add("grow", request, volume.key))
            else:
                draft.conflict(volume.key, f"a {volume.backend} volume cannot grow; it has {bdev.size} bytes")
        if volume.inflated and bdev.clone_of:
            request = methods.lvol_inflate(backends.bdev_name(volume, self._desired))
            calls.append(draft.add("inflate", request, volume.key, needs=Needs(takes_long=True)))
        if bdev.limits != volume.limits:
            calls.append(draft.add("limit", backends.set_limits(volume, self._desired), volume.key))
        if mirror := mirrors.find(volume, self._desired, self._actual):
            self._rebuild(mirror)
        return tuple(calls)

    def _rebuild(self, mirror: mirrors.Mirror) -> None:
        """One member that is there and not in the mirror. The next one has to wait for the end of its rebuild."""
        if reason := mirrors.too_small(mirror, self._desired, self._actual):
            self._draft.conflict(mirror.volume.key, reason)
            return
        for member in mirror.missing:
            key = Key("volume", member)
            volume = self._desired.get(key)
            ready = self.ensure(key)
            if ready is None or not isinstance(volume, Volume) or mirror.raid.rebuilding:
                continue
            leaving = [call for bdev in mirror.foreign for call in self._draft.released(bdev)]
            request = methods.raid_add_member(mirror.volume.in_spdk, backends.bdev_name(volume, self._desired))
            self._draft.add("rebuild", request, mirror.volume.key, [*ready, *self._freed(key), *leaving])
            return

    def _pool(self, pool: Pool, after: list[int]) -> tuple[int, ...] | None:
        draft, present = self._draft, self._actual.lvstores.get(pool.in_spdk)
        if present is None:
            base = self._desired.get(Key("volume", pool.base))
            assert isinstance(base, Volume)
            if self._desired.entries[pool.key].provisioned:
                draft.waiting.add(pool.key)
                return None
            name = backends.bdev_name(base, self._desired)
            zeroes = not backends.erases(pool.name, self._desired, self._actual)
            request = methods.lvstore_create(pool.in_spdk, name, pool.cluster_size, write_zeroes=zeroes)
            needs = Needs(events=True, seen=name, takes_long=True)
            return (draft.add("create", request, pool.key, after, needs=needs, provisions=True),)
        if not self._ownership.lvstore(pool):
            draft.conflict(pool.key, f"an lvstore of this name is on bdev {present.base} and is not ours")
            return None
        draft.adopted.add(pool.key)
        if any(draft.calls[number].verb == "grow" for number in after):
            after = [draft.add("grow", methods.lvstore_grow(pool.in_spdk), pool.key, after)]
        return tuple(after)
