"""From what is wanted and what SPDK has to the calls that lead from one to the other. Pure functions.

Owns the rules: what is ours (it bears our identity), what is adopted (it matches), what is repaired, what is
foreign (reported, never touched), what conflicts, and in which order calls must be made. It makes no call,
and it does not know files, sockets or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from nvmuser.model.backends import BACKENDS
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import MAX_NAMESPACES, NO_LIMITS, AnyObject, Controller, Namespace, Pool, Remote, Volume
from nvmuser.reconcile import backends, mirrors, remotes
from nvmuser.reconcile.actual import Actual, ActualNamespace, Bdev, Subsystem
from nvmuser.reconcile.calls import Call, Plan, Problem
from nvmuser.reconcile.planner import Planner
from nvmuser.rpc import methods

__all__ = ["Call", "Plan", "Problem", "plan"]

NO_WAYS = remotes.Ways()


def plan(
    desired: Desired,
    actual: Actual,
    directory: Callable[[str], Path],
    without: frozenset[Key] = frozenset(),
    ways: remotes.Ways = NO_WAYS,
) -> Plan:
    """The calls from `actual` to `desired`.

    :param directory: where a controller's listener lives.
    :param without: keys of mirrors that are to be started without the members that are missing.
    :param ways: where the paths of remotes lead.
    """
    planner = _Whole(desired, actual, directory, without, ways)
    planner.deletions()
    planner.transport()
    for one in desired.wanted():
        planner.ensure(one.key)
    return Plan(
        tuple(planner.calls),
        tuple(planner.conflicts),
        frozenset(planner.waiting),
        tuple(planner.foreign()),
        frozenset(planner.adopted),
        _restart(desired, actual),
    )


def _restart(desired: Desired, actual: Actual) -> tuple[Problem, ...]:
    """Profile and cores are given to a process when it starts. What nobody has declared cannot be wrong."""
    wanted, other = desired.target, []
    if wanted.key not in desired.entries:
        return ()
    if actual.profile and actual.profile != wanted.profile:
        other.append(f"profile {wanted.profile}, not {actual.profile}")
    if actual.cores and wanted.cores and set(actual.cores) != set(wanted.cores):
        other.append(f"cores {_numbers(wanted.cores)}, not {_numbers(actual.cores)}")
    if not other:
        return ()
    return (Problem(wanted.key, f"{', '.join(other)}: takes effect with `nvmuser target restart`"),)


def _numbers(cores: Iterable[int]) -> str:
    return " ".join(map(str, sorted(cores)))


class _Whole(Planner):
    """With what has to be there, from the bottom up."""

    def transport(self) -> None:
        if not self.actual.transport and self.desired.controllers():
            self._transport = (self._add(methods.create_transport(), Key("transport", "VFIOUSER")),)

    def ensure(self, key: Key) -> tuple[int, ...] | None:
        """The calls after which it is there; None when it cannot be yet, or at all."""
        if key not in self._ready:
            self._ready[key] = None  # what lies on itself is never ready; `Desired.check` refuses it
            one = self.desired.get(key)
            before = [self.ensure(below) for below in one.depends_on]
            ready = [call for calls in before if calls is not None for call in calls]
            ready += [call for below in one.depends_on for call in self._free(below)]
            if isinstance(one, Controller):
                self._ready[key] = self._controller(one)
            elif None in before and not self._stands(one):
                self.waiting.add(key)
            elif isinstance(one, Volume):
                self._ready[key] = self._volume(one, ready)
            elif isinstance(one, Pool):
                self._ready[key] = self._pool(one, ready)
            elif isinstance(one, Remote):
                self._ready[key] = self._remote(one)
        return self._ready[key]

    def _stands(self, one: AnyObject) -> bool:
        """Is it there, or can it be, although a part of what it lies on is not?"""
        raid = self.actual.raids.get(one.name)
        online = raid is not None and raid.online
        return isinstance(one, Volume) and one.backend == "raid1" and (online or one.key in self.without)

    def _volume(self, volume: Volume, after: list[int]) -> tuple[int, ...] | None:
        entry = self.desired.entries[volume.key]
        bdev = backends.find(volume, self.desired, self.actual)
        if bdev is None and volume.key in self.without:
            # After nothing: the members that are there are in it, and the others do not come.
            return (self._add(methods.raid_start_degraded(volume.name), volume.key),)
        if bdev is None:
            request = backends.create(volume, self.desired)
            if request is None or (backends.made_once(volume) and entry.provisioned):
                self.waiting.add(volume.key)
                return None
            made = backends.made_once(volume)
            calls = [self._add(request, volume.key, after, provisions=made)]
            if volume.limits != NO_LIMITS:
                calls.append(self._add(backends.set_limits(volume, self.desired), volume.key, calls))
            return tuple(calls)
        if not self._ours(volume):
            self._conflict(
                volume.key,
                f"bdev {bdev.name} exists and is not ours (UUID {bdev.uuid}); delete it, or choose another name",
            )
            return None
        self.adopted.add(volume.key)
        return self._volume_repaired(volume, bdev)

    def _volume_repaired(self, volume: Volume, bdev: Bdev) -> tuple[int, ...]:
        calls: list[int] = []
        if bdev.block_size != volume.block_size and BACKENDS[volume.backend].sized:
            self._conflict(volume.key, f"has blocks of {bdev.block_size} bytes instead of {volume.block_size}")
        elif volume.size and bdev.size < volume.size:
            if request := backends.grow(volume, self.desired):
                calls.append(self._add(request, volume.key, verb="grow"))
            else:
                self._conflict(volume.key, f"a {volume.backend} volume cannot grow; it has {bdev.size} bytes")
        if volume.inflated and bdev.clone_of:
            request = methods.lvol_inflate(backends.bdev_name(volume, self.desired))
            calls.append(self._add(request, volume.key, verb="inflate"))
        if bdev.limits != volume.limits:
            calls.append(self._add(backends.set_limits(volume, self.desired), volume.key, verb="limit"))
        if mirror := mirrors.find(volume, self.desired, self.actual):
            self._members_come(mirror)
        return tuple(calls)

    def _members_come(self, mirror: mirrors.Mirror) -> None:
        """One member that is there and not in the mirror: it is rebuilt. The next one has to wait for its end."""
        for member in mirror.missing:
            key = Key("volume", member)
            volume = self.desired.get(key)
            ready = self.ensure(key)
            if ready is None or not isinstance(volume, Volume) or mirror.raid.rebuilding:
                continue
            leaving = [call for bdev in mirror.foreign for call in self._released.get(bdev, [])]
            request = methods.raid_add_member(mirror.volume.name, backends.bdev_name(volume, self.desired))
            self._add(request, mirror.volume.key, [*ready, *self._free(key), *leaving], verb="rebuild")
            return

    def _pool(self, pool: Pool, after: list[int]) -> tuple[int, ...] | None:
        if pool.name not in self.actual.lvstores:
            base = self.desired.get(Key("volume", pool.base))
            assert isinstance(base, Volume)
            if self.desired.entries[pool.key].provisioned:
                self.waiting.add(pool.key)
                return None
            name = backends.bdev_name(base, self.desired)
            request = methods.lvstore_create(pool.name, name, pool.cluster_size)
            return (self._add(request, pool.key, after, provisions=True),)
        if not self._our_store(pool):
            base_name = self.actual.lvstores[pool.name].base
            self._conflict(pool.key, f"an lvstore of this name is on bdev {base_name} and is not ours")
            return None
        self.adopted.add(pool.key)
        if any(self.calls[number].verb == "grow" for number in after):
            after = [self._add(methods.lvstore_grow(pool.name), pool.key, after, verb="grow")]
        return tuple(after)

    def _remote(self, remote: Remote) -> tuple[int, ...] | None:
        present = self.actual.remotes.get(remote.name)
        if present and present.nqn != remote.nqn:
            self._conflict(remote.key, f"an NVMe controller of this name is attached to {present.nqn}")
            return None
        calls: list[int] = []
        kept: set[tuple[str, int]] = set()
        for path in remote.paths:
            there = remotes.attached(path, present, self.ways)
            addresses = self.ways.to(path)
            if addresses and not there and (addresses[0], path.port) not in kept:
                there = {(addresses[0], path.port)}
                calls = calls or self._keys(remote)
                request = methods.attach_remote(
                    remote.name, remote.nqn, addresses[0], path.port, host=self.ways.host, keys=remote.key_files
                )
                # One after the other: the first makes the controller, the others are added to it.
                calls.append(self._add(request, remote.key, calls[-1:]))
            kept |= there
        added = tuple(calls)
        if reason := remotes.unresolved(remote.paths, self.ways):
            # What is attached may be what the name stood for: it stays.
            self._conflict(remote.key, reason)
            return added
        for address, port in present.paths if present else ():
            if (address, port) not in kept:
                request = methods.detach_path(remote.name, remote.nqn, address, port)
                self._add(request, remote.key, added, verb="delete")
        return added

    def _keys(self, remote: Remote) -> list[int]:
        """SPDK knows the files of its secrets."""
        calls: list[int] = []
        for name, path in remote.key_files.items():
            known = self.actual.keys.get(name)
            if known and known != path:
                calls.append(self._add(methods.remove_key(name), remote.key, calls[-1:]))
            if known != path:
                calls.append(self._add(methods.add_key(name, path), remote.key, calls[-1:]))
        return calls

    def _controller(self, controller: Controller) -> tuple[int, ...] | None:
        present = self.actual.subsystems.get(controller.nqn)
        made: list[int] = []
        if present is None:
            request = methods.create_subsystem(controller.nqn, controller.serial, controller.cntlid, MAX_NAMESPACES)
            made.append(self._add(request, controller.key))
            present = Subsystem(controller.nqn, controller.serial, controller.cntlid, controller.cntlid)
        elif present.serial != controller.serial:
            self._conflict(
                controller.key, f"subsystem {controller.nqn} exists and is not ours (serial {present.serial})"
            )
            return None
        elif (present.min_cntlid, present.max_cntlid) != (controller.cntlid, controller.cntlid):
            self._conflict(controller.key, f"its controller ids are {present.min_cntlid} to {present.max_cntlid}")
        if not present.any_host:
            made.append(self._add(methods.allow_any_host(controller.nqn), controller.key, made))
        made = self._namespaces(controller, present, made)
        directory = str(self.directory(controller.name))
        if ("VFIOUSER", directory) not in present.listeners:
            # Last, so that a guest finds everything there.
            request = methods.add_listener(controller.nqn, directory)
            made.append(self._add(request, controller.key, (*made, *self._transport)))
        return tuple(made)

    def _namespaces(self, controller: Controller, present: Subsystem, made: list[int]) -> list[int]:
        there = {one.nsid: one for one in present.namespaces}
        added: list[int] = []
        for one in controller.namespaces:
            volume = self.desired.get(Key("volume", one.volume))
            assert isinstance(volume, Volume)
            ready = self.ensure(volume.key)
            found = there.get(one.nsid)
            if found and self._namespace_matches(found, one):
                continue
            if ready is None:
                self.waiting.add(controller.key)
                continue
            if found and found.bdev not in self._by_bdev:
                self._conflict(controller.key, f"its namespace {one.nsid} shows bdev {found.bdev}, which is not ours")
                continue
            added.append(self._add_namespace(controller, one, volume, [*made, *ready], found))
        return [*made, *added]

    def _add_namespace(
        self, controller: Controller, one: Namespace, volume: Volume, after: list[int], found: ActualNamespace | None
    ) -> int:
        bdev = backends.bdev_name(volume, self.desired)
        after = [*after, *self._free(volume.key)]
        if found:
            after += self._released.get(found.bdev, [])
        request = methods.add_namespace(
            controller.nqn, one.nsid, bdev, uuid=volume.uuid, nguid=volume.nguid, eui64=volume.eui64
        )
        return self._add(request, controller.key, after)
