"""From what is wanted and what SPDK has to the calls that lead from one to the other. Pure functions.

Owns the rules: what is ours (it bears our identity), what is adopted (it matches), what is repaired, what is
foreign (reported, never touched), what conflicts, and in which order calls must be made. It makes no call,
and it does not know files, sockets or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvmuser import backends
from nvmuser.actual import Actual, ActualNamespace, Bdev, Subsystem
from nvmuser.desired import Desired
from nvmuser.model import MAX_NAMESPACES, NO_LIMITS, Controller, Namespace, Pool, Remote, Volume
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


@dataclass(frozen=True)
class Call:
    """One request, and which others (by their place in the plan) must have succeeded before."""

    request: Request
    object: str
    """Key of what it is for."""
    after: tuple[int, ...] = ()
    provisions: bool = False
    """Its success makes the object's data: never to be made again."""
    verb: str = "create"


@dataclass(frozen=True)
class Problem:
    """What stands in the way of an object; no call can mend it."""

    object: str
    message: str

    def __str__(self) -> str:
        return f"{self.object.replace('/', ' ', 1)}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        return {"object": self.object, "message": self.message}


@dataclass(frozen=True)
class Plan:
    calls: tuple[Call, ...] = ()
    conflicts: tuple[Problem, ...] = ()
    waiting: frozenset[str] = frozenset()
    """Objects that come by themselves, or cannot come before something else has."""
    foreign: tuple[str, ...] = ()
    adopted: frozenset[str] = frozenset()
    """Objects that hold data, are there, and are ours."""

    def waves(self) -> list[list[Call]]:
        """What can be in flight together, in order."""
        level: list[int] = []
        waves: list[list[Call]] = []
        for call in self.calls:
            mine = max((level[before] + 1 for before in call.after), default=0)
            level.append(mine)
            if mine == len(waves):
                waves.append([])
            waves[mine].append(call)
        return waves


def plan(desired: Desired, actual: Actual, directory: Callable[[str], Path]) -> Plan:
    """The calls from `actual` to `desired`.

    :param directory: where a controller's listener lives.
    """
    planner = _Planner(desired, actual, directory)
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
    )


@dataclass
class _Planner:
    desired: Desired
    actual: Actual
    directory: Callable[[str], Path]
    calls: list[Call] = field(default_factory=list)
    conflicts: list[Problem] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    adopted: set[str] = field(default_factory=set)
    _ready: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    """Key → the calls after which it is there; None: it will not be there."""
    _released: dict[str, list[int]] = field(default_factory=dict)
    """bdev → the calls after which nothing of ours that goes has it any more."""
    _transport: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._by_bdev: dict[str, Volume] = {}
        for entry in self.desired.entries.values():
            if isinstance(entry.object, Volume) and (bdev := self._ours(entry.object)):
                self._by_bdev[bdev.name] = entry.object
        self._by_nqn = {
            entry.object.nqn: entry.object
            for entry in self.desired.entries.values()
            if isinstance(entry.object, Controller)
        }

    # -- helpers -------------------------------------------------------------------------------------------

    def _add(
        self, request: Request, key: str, after: Iterable[int] = (), *, verb: str = "create", provisions: bool = False
    ) -> int:
        self.calls.append(Call(request, key, tuple(dict.fromkeys(after)), provisions, verb))
        return len(self.calls) - 1

    def _conflict(self, key: str, message: str) -> None:
        self.conflicts.append(Problem(key, message))

    def _ours(self, volume: Volume) -> Bdev | None:
        bdev = backends.find(volume, self.desired, self.actual)
        return bdev if bdev and backends.is_ours(volume, bdev, self.desired, self.actual) else None

    def _bdev(self, key: str) -> str | None:
        """SPDK's name of a volume, by our key; None when it is not there, or no volume."""
        entry = self.desired.entries.get(key)
        bdev = self._ours(entry.object) if entry and isinstance(entry.object, Volume) else None
        return bdev.name if bdev else None

    def _free(self, key: str) -> list[int]:
        """The calls after which a volume has no user that goes."""
        bdev = self._bdev(key)
        return self._released.get(bdev, []) if bdev else []

    def _subsystem(self, controller: Controller) -> Subsystem | None:
        found = self.actual.subsystems.get(controller.nqn)
        return found if found and found.serial == controller.serial else None

    # -- what has to go --------------------------------------------------------------------------------------

    def deletions(self) -> None:
        """Namespaces and controllers, then volumes from the top down, then pools and remotes."""
        for entry in self.desired.entries.values():
            if isinstance(entry.object, Controller):
                self._controller_goes(entry.object, whole=entry.deleting)
        gone: dict[str, tuple[int, ...]] = {}
        for one in self.desired.deleted():
            if not isinstance(one, Controller):
                self._goes(one, gone)

    def _controller_goes(self, controller: Controller, *, whole: bool) -> None:
        subsystem = self._subsystem(controller)
        if not subsystem:
            return
        wanted = {one.nsid: one for one in controller.namespaces}
        delete = [self._add(methods.delete_subsystem(controller.nqn), controller.key, verb="delete")] if whole else []
        for one in subsystem.namespaces:
            shown = self._by_bdev.get(one.bdev)
            if whole:
                self._released.setdefault(one.bdev, []).extend(delete)
            elif shown and not self._namespace_matches(one, wanted.get(one.nsid)):
                request = methods.remove_namespace(controller.nqn, one.nsid)
                call = self._add(request, controller.key, verb="delete")
                self._released.setdefault(one.bdev, []).append(call)

    def _namespace_matches(self, actual: ActualNamespace, wanted: Namespace | None) -> bool:
        shown = self._by_bdev.get(actual.bdev)
        if wanted is None or shown is None or shown.name != wanted.volume:
            return False
        entry = self.desired.entries.get(shown.key)
        return (
            entry is not None
            and not entry.deleting
            and (actual.uuid, actual.nguid.upper(), actual.eui64.upper()) == (shown.uuid, shown.nguid, shown.eui64)
        )

    def _goes(self, one: Volume | Pool | Remote, gone: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The calls after which it is gone; what lies on it goes before."""
        if one.key in gone:
            return gone[one.key]
        gone[one.key] = ()
        above = [two for two in self.desired.deleted() if one.key in two.below and not isinstance(two, Controller)]
        after = [call for two in above for call in self._goes(two, gone)]
        request = self._delete_request(one)
        if isinstance(one, Volume) and (bdev := self._ours(one)):
            after += self._released.get(bdev.name, [])
            if request and (user := self._foreign_user(bdev.name)):
                self._conflict(one.key, f"not deleted: subsystem {user}, which is not ours, shows it")
                request = None
        if request:
            call = self._add(request, one.key, after, verb="delete")
            for below in one.below:
                if name := self._bdev(below):
                    self._released.setdefault(name, []).append(call)
            after = [call]
        gone[one.key] = tuple(after)
        return gone[one.key]

    def _delete_request(self, one: Volume | Pool | Remote) -> Request | None:
        if isinstance(one, Volume):
            return backends.delete(one, self.desired) if self._ours(one) else None
        if isinstance(one, Remote):
            return methods.detach_remote(one.name) if one.name in self.actual.remotes else None
        store = self.actual.lvstores.get(one.name)
        if store is None or not self._our_store(one):
            return None
        strangers = [
            b.name for b in self.actual.bdevs.values() if b.lvstore == store.uuid and b.name not in self._by_bdev
        ]
        if strangers:
            self._conflict(one.key, f"not deleted: it holds volumes that are not ours: {', '.join(strangers)}")
            return None
        return methods.lvstore_delete(one.name)

    def _foreign_user(self, bdev: str) -> str | None:
        for subsystem in self.actual.subsystems.values():
            controller = self._by_nqn.get(subsystem.nqn)
            ours = controller is not None and self._subsystem(controller) is not None
            if not ours and any(one.bdev == bdev for one in subsystem.namespaces):
                return subsystem.nqn
        return None

    # -- what has to be there --------------------------------------------------------------------------------

    def transport(self) -> None:
        if not self.actual.transport and self.desired.controllers():
            self._transport = (self._add(methods.create_transport(), "transport/VFIOUSER"),)

    def ensure(self, key: str) -> tuple[int, ...] | None:
        """The calls after which it is there; None when it cannot be yet, or at all."""
        if key not in self._ready:
            self._ready[key] = None  # what lies on itself is never ready; `Desired.check` refuses it
            one = self.desired.get(key)
            before = [self.ensure(below) for below in one.below]
            ready = [call for calls in before if calls is not None for call in calls]
            ready += [call for below in one.below for call in self._free(below)]
            if isinstance(one, Controller):
                self._ready[key] = self._controller(one)
            elif None in before:
                self.waiting.add(key)
            elif isinstance(one, Volume):
                self._ready[key] = self._volume(one, ready)
            elif isinstance(one, Pool):
                self._ready[key] = self._pool(one, ready)
            else:
                self._ready[key] = self._remote(one)
        return self._ready[key]

    def _volume(self, volume: Volume, after: list[int]) -> tuple[int, ...] | None:
        entry = self.desired.entries[volume.key]
        bdev = backends.find(volume, self.desired, self.actual)
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
        if bdev.block_size != volume.block_size and volume.backend in volume.sized:
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
        return tuple(calls)

    def _our_store(self, pool: Pool) -> bool:
        """Is the lvstore of that name on the volume that this pool is said to lie on?"""
        entry = self.desired.entries.get(f"volume/{pool.base}")
        store = self.actual.lvstores[pool.name]
        base = self._ours(entry.object) if entry and isinstance(entry.object, Volume) else None
        return base is not None and store.base in (base.name, *base.aliases)

    def _pool(self, pool: Pool, after: list[int]) -> tuple[int, ...] | None:
        if pool.name not in self.actual.lvstores:
            base = self.desired.get(f"volume/{pool.base}")
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
        return tuple(after)

    def _remote(self, remote: Remote) -> tuple[int, ...] | None:
        present = self.actual.remotes.get(remote.name)
        if present and present.nqn != remote.nqn:
            self._conflict(remote.key, f"an NVMe controller of this name is attached to {present.nqn}")
            return None
        calls: list[int] = []
        for path in remote.paths:
            if not present or (path.name, path.port) not in present.paths:
                request = methods.attach_remote(remote.name, remote.nqn, path.name, path.port)
                # One after the other: the first makes the controller, the others are added to it.
                calls.append(self._add(request, remote.key, calls[-1:]))
        return tuple(calls)

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
            volume = self.desired.get(f"volume/{one.volume}")
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

    # -- what is not ours ------------------------------------------------------------------------------------

    def foreign(self) -> list[str]:
        """In words, for a person."""
        stores = {store.uuid for store in self.actual.lvstores.values()}
        known_remotes = {one.name for one in self.desired.remotes()}
        found = [
            f"bdev {bdev.name}"
            for bdev in self.actual.bdevs.values()
            if bdev.name not in self._by_bdev
            and not any(bdev.name.startswith(f"{name}n") for name in known_remotes)
            and (not bdev.lvstore or bdev.lvstore in stores)
        ]
        for subsystem in self.actual.subsystems.values():
            controller = self._by_nqn.get(subsystem.nqn)
            if controller is None or not self._subsystem(controller):
                found.append(f"subsystem {subsystem.nqn}")
                continue
            own = ("VFIOUSER", str(self.directory(controller.name)))
            found += [f"listener {a} of controller {controller.name}" for t, a in subsystem.listeners if (t, a) != own]
            found += [
                f"namespace {one.nsid} of controller {controller.name} (bdev {one.bdev})"
                for one in subsystem.namespaces
                if one.bdev not in self._by_bdev
            ]
        return found
