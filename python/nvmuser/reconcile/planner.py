"""The half of the planner that both directions need, and the way out: what is ours, who uses it, what has to
go.

Pure. `nvmuser.reconcile.plan` has the other half, what has to be there, and the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Pool, Remote, TargetSettings, Volume
from nvmuser.reconcile import backends, mirrors, remotes
from nvmuser.reconcile.actual import Actual, ActualNamespace, Bdev, Subsystem
from nvmuser.reconcile.calls import Call, Problem
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


@dataclass
class Planner:
    """Collects calls while it goes through the objects."""

    desired: Desired
    actual: Actual
    directory: Callable[[str], Path]
    without: frozenset[Key] = frozenset()
    """Keys of mirrors to be started without the members that are missing."""
    ways: remotes.Ways = field(default_factory=remotes.Ways)
    """Where the paths of remotes lead."""
    calls: list[Call] = field(default_factory=list)
    conflicts: list[Problem] = field(default_factory=list)
    waiting: set[Key] = field(default_factory=set)
    adopted: set[Key] = field(default_factory=set)
    _ready: dict[Key, tuple[int, ...] | None] = field(default_factory=dict)
    """Key → the calls after which it is there; None: it will not be there."""
    _released: dict[str, list[int]] = field(default_factory=dict)
    """bdev → the calls after which nothing of ours that goes has it any more."""
    _transport: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._lying_on: dict[Key, list[Volume | Pool]] = {}
        """Key of what goes → what lies on it, and goes before it."""
        for one in self.desired.deleted():
            if isinstance(one, Volume | Pool):
                for key in one.depends_on:
                    self._lying_on.setdefault(key, []).append(one)
        self._by_bdev: dict[str, Volume] = {}
        for entry in self.desired.entries.values():
            if isinstance(entry.object, Volume) and (bdev := self._ours(entry.object)):
                self._by_bdev[bdev.name] = entry.object
        self._by_nqn = {
            entry.object.nqn: entry.object
            for entry in self.desired.entries.values()
            if isinstance(entry.object, Controller)
        }
        self._foreign_users = {
            namespace.bdev: subsystem.nqn
            for subsystem in self.actual.subsystems.values()
            if (controller := self._by_nqn.get(subsystem.nqn)) is None or not self._subsystem(controller)
            for namespace in subsystem.namespaces
        }
        """bdev → the subsystem that shows it, which is not ours."""

    # -- helpers -------------------------------------------------------------------------------------------

    def _add(
        self, request: Request, key: Key, after: Iterable[int] = (), *, verb: str = "create", provisions: bool = False
    ) -> int:
        self.calls.append(Call(request, key, tuple(dict.fromkeys(after)), provisions, verb))
        return len(self.calls) - 1

    def _conflict(self, key: Key, message: str) -> None:
        self.conflicts.append(Problem(key, message))

    def _ours(self, volume: Volume) -> Bdev | None:
        bdev = backends.find(volume, self.desired, self.actual)
        return bdev if bdev and backends.is_ours(volume, bdev, self.desired, self.actual) else None

    def _bdev(self, key: Key) -> str | None:
        """SPDK's name of a volume, by our key; None when it is not there, or no volume."""
        entry = self.desired.entries.get(key)
        bdev = self._ours(entry.object) if entry and isinstance(entry.object, Volume) else None
        return bdev.name if bdev else None

    def _free(self, key: Key) -> list[int]:
        """The calls after which a volume has no user that goes."""
        bdev = self._bdev(key)
        return self._released.get(bdev, []) if bdev else []

    def _subsystem(self, controller: Controller) -> Subsystem | None:
        found = self.actual.subsystems.get(controller.nqn)
        return found if found and found.serial == controller.serial else None

    def _our_store(self, pool: Pool) -> bool:
        """Is the lvstore of that name on the volume that this pool is said to lie on?"""
        entry = self.desired.entries.get(Key("volume", pool.base))
        store = self.actual.lvstores[pool.name]
        base = self._ours(entry.object) if entry and isinstance(entry.object, Volume) else None
        return base is not None and store.base in (base.name, *base.aliases)

    # -- what has to go --------------------------------------------------------------------------------------

    def deletions(self) -> None:
        """Namespaces and controllers, then volumes from the top down, then pools and remotes."""
        for entry in self.desired.entries.values():
            if isinstance(entry.object, Controller):
                self._controller_goes(entry.object, whole=entry.deleting)
        for mirror in mirrors.each(self.desired, self.actual):
            self._members_go(mirror)
        gone: dict[Key, tuple[int, ...]] = {}
        for one in self.desired.deleted():
            if not isinstance(one, Controller | TargetSettings):
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

    def _members_go(self, mirror: mirrors.Mirror) -> None:
        """Former members leave a mirror, before others take their places."""
        if mirror.foreign and not mirror.in_sync:
            names = ", ".join(mirror.foreign)
            self._conflict(mirror.volume.key, f"bdev {names} alone holds its data: wait until a member is rebuilt")
            return
        for bdev in mirror.foreign if mirror.raid.online else ():
            call = self._add(methods.raid_remove_member(bdev), mirror.volume.key, verb="replace")
            self._released.setdefault(bdev, []).append(call)

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

    def _goes(self, one: Volume | Pool | Remote, gone: dict[Key, tuple[int, ...]]) -> tuple[int, ...]:
        """The calls after which it is gone; what lies on it goes before."""
        if one.key in gone:
            return gone[one.key]
        gone[one.key] = ()
        after = [call for above in self._lying_on.get(one.key, ()) for call in self._goes(above, gone)]
        request = self._delete_request(one)
        if isinstance(one, Volume) and (bdev := self._ours(one)):
            after += self._released.get(bdev.name, [])
            if request and (user := self._foreign_users.get(bdev.name)):
                self._conflict(one.key, f"not deleted: subsystem {user}, which is not ours, shows it")
                request = None
        if request:
            call = self._add(request, one.key, after, verb="delete")
            for below in one.depends_on:
                if name := self._bdev(below):
                    self._released.setdefault(name, []).append(call)
            after = [call]
            for name in one.key_files if isinstance(one, Remote) else ():
                if name in self.actual.keys:
                    after = [self._add(methods.remove_key(name), one.key, after, verb="delete")]
        gone[one.key] = tuple(after)
        return gone[one.key]

    def _delete_request(self, one: Volume | Pool | Remote) -> Request | None:
        if isinstance(one, Volume):
            there = self._ours(one) or self.actual.is_incomplete(one.name, one.uuid)
            return backends.delete(one, self.desired) if there else None
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
