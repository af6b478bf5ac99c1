"""What has to go, from the top down: namespaces and controllers, then volumes, pools and remotes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Controller, Pool, Remote, TargetSettings, Volume
from nvmuser.reconcile import backends, mirrors
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.calls import Needs
from nvmuser.reconcile.draft import Draft
from nvmuser.reconcile.ownership import Ownership
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request

NOTHING: Mapping[Key, Request] = {}
_Going = Volume | Pool | Remote | Cluster


class Removals:
    """Adds the calls that take things away to a draft."""

    def __init__(
        self,
        desired: Desired,
        actual: Actual,
        ownership: Ownership,
        draft: Draft,
        leaving: frozenset[Key],
        release: Mapping[Key, Request] = NOTHING,
    ) -> None:
        """
        :param leaving: keys of what is closed, and stays on its disk.
        :param release: of volumes of remotes: the call that gives up their reservation.
        """
        self._desired = desired
        self._actual = actual
        self._ownership = ownership
        self._draft = draft
        self._leaving = leaving
        self._release = release
        self._gone: dict[Key, tuple[int, ...]] = {}
        """Key of what goes → the calls after which it is gone."""
        self._dependents: dict[Key, list[Volume | Pool]] = {}
        """Key of what goes → what lies on it, and goes before it."""
        for dependent in desired.deleted():
            if isinstance(dependent, Volume | Pool):
                for key in dependent.depends_on:
                    self._dependents.setdefault(key, []).append(dependent)

    def plan(self) -> None:
        """Plan every removal."""
        for entry in self._desired.entries.values():
            if isinstance(entry.object, Controller):
                self._controller(entry.object, deleting=entry.deleting)
        for mirror in mirrors.each(self._desired, self._actual):
            self._members(mirror)
        for volume in self._desired.volumes():
            if volume.key in self._desired.closed:
                self._remove(volume)
        for deleted in self._desired.deleted():
            if not isinstance(deleted, Controller | TargetSettings):
                self._remove(deleted)

    def _controller(self, controller: Controller, *, deleting: bool) -> None:
        """The whole subsystem, or those of its namespaces that are not wanted so."""
        subsystem = self._ownership.subsystem(controller)
        if not subsystem:
            return
        if deleting:
            call = self._draft.add("delete", methods.delete_subsystem(controller.nqn), controller.key)
            for namespace in subsystem.namespaces:
                self._draft.release(namespace.bdev, call)
            return
        kept = () if controller.away else controller.namespaces
        wanted = {namespace.nsid: namespace for namespace in kept}
        for shown in subsystem.namespaces:
            if self._ownership.volume(shown.bdev) and not self._ownership.matches(shown, wanted.get(shown.nsid)):
                request = methods.remove_namespace(controller.nqn, shown.nsid)
                self._draft.release(shown.bdev, self._draft.add("delete", request, controller.key))

    def _members(self, mirror: mirrors.Mirror) -> None:
        """Former members leave a mirror before others take their places."""
        if mirror.foreign and not mirror.in_sync:
            names = ", ".join(mirror.foreign)
            self._draft.conflict(
                mirror.volume.key, f"bdev {names} alone holds its data: wait until a member is rebuilt"
            )
            return
        if mirrors.too_small(mirror, self._desired, self._actual):
            return  # the member that would take the place cannot: that is a conflict of the additions
        for bdev in mirror.foreign if mirror.raid.online else ():
            request = methods.raid_remove_member(bdev)
            self._draft.release(bdev, self._draft.add("replace", request, mirror.volume.key))

    def _remove(self, going: _Going) -> tuple[int, ...]:
        """The calls after which it is gone; what lies on it goes before."""
        if going.key in self._gone:
            return self._gone[going.key]
        self._gone[going.key] = ()
        after = [call for dependent in self._dependents.get(going.key, ()) for call in self._remove(dependent)]
        request = self._request(going)
        if isinstance(going, Volume) and (bdev := self._ownership.bdev(going)):
            after += self._draft.released(bdev.name)
            if request and (user := self._ownership.foreign_user(bdev.name)):
                self._draft.conflict(going.key, f"not deleted: subsystem {user}, which is not ours, shows it")
                request = None
        if request:
            after = self._requested(going, request, after)
        self._gone[going.key] = tuple(after)
        return self._gone[going.key]

    def _requested(self, going: _Going, request: Request, after: list[int]) -> list[int]:
        # What a volume or a pool gives back may have to be written.
        needs = Needs(takes_long=not isinstance(going, Remote))
        call = self._draft.add("delete", request, going.key, after, needs=needs)
        for key in going.depends_on:
            if bdev := self._ownership.bdev_name(key):
                self._draft.release(bdev, call)
        last = [call]
        for name in going.key_files if isinstance(going, Remote) else ():
            if name in self._actual.keys:
                last = [self._draft.add("delete", methods.remove_key(name), going.key, last)]
        return last

    def _request(self, going: _Going) -> Request | None:
        """None: it is not there, must not be deleted, or goes with what it lies on."""
        if isinstance(going, Volume):
            there = self._ownership.bdev(going) or self._actual.is_incomplete(going.in_spdk, going.uuid)
            if going.key in self._leaving:  # its reservation stays, for the next process to take
                return backends.close(going, self._desired) if there else None
            delete = backends.delete(going, self._desired) or self._release.get(going.key)
            return delete if there else None
        if isinstance(going, Remote):
            return methods.detach_remote(going.in_spdk) if going.in_spdk in self._actual.remotes else None
        if isinstance(going, Cluster):
            return methods.unregister_cluster(going.in_spdk) if going.in_spdk in self._actual.clusters else None
        store = self._ownership.lvstore(going)
        if store is None or going.key in self._leaving:
            return None
        if strangers := self._ownership.strangers_in(store):
            names = ", ".join(strangers)
            self._draft.conflict(going.key, f"not deleted: it holds volumes that are not ours: {names}")
            return None
        return methods.lvstore_delete(going.in_spdk)
