"""What etcd has of a fleet, as far as it is followed: hosts, what is wanted, who owns what. Kept up to date by a watch.

Pure: it is given listings and changes, and reads nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from nvmuser.fleet.etcd.client import Item, Listing
from nvmuser.fleet.etcd.watch import Changes
from nvmuser.fleet.journey import Journey
from nvmuser.fleet.keys import FleetKeys, object_key
from nvmuser.fleet.records import SHARED, Declared, Fleet, Host, Owner, Quota, declared_elsewhere, decode
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster


@dataclass
class View:
    """:param host: whose view it is: of other hosts' objects only is kept on which host they are; empty: all.
    :param revision: up to which it is complete.
    :param revisions: key in etcd → revision of its last write, of everything that is there.
    """

    keys: FleetKeys
    host: str = ""
    revision: int = 0
    cluster: int = 0
    revisions: dict[str, int] = field(default_factory=dict)
    fleet: Fleet | None = None
    hosts: dict[str, Host] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    objects: dict[Key, Declared] = field(default_factory=dict)
    owners: dict[str, Owner] = field(default_factory=dict)
    tenants: dict[str, Quota] = field(default_factory=dict)
    journeys: dict[str, Journey] = field(default_factory=dict)

    @classmethod
    def of(cls, keys: FleetKeys, listing: Listing, host: str = "") -> View:
        """From everything that there is.

        :raises FleetError: it is damaged, or of a newer version.
        """
        view = cls(keys, host, listing.revision, listing.cluster)
        view._take(listing.items)
        return view

    def follow(self, changes: Changes) -> bool:
        """Bring it up to date. Returns whether something is this host's, or was, that has changed.

        :raises FleetError: it is damaged, or of a newer version.
        """
        self.revision = changes.revision
        return self._take(changes.items)

    @property
    def settled(self) -> bool:
        """No change of many transactions is half done."""
        return self.keys.change not in self.revisions

    def _take(self, items: Mapping[str, Item | None]) -> bool:
        concerned = False
        for name, item in items.items():
            if item:
                self.revisions[name] = item.revision
            else:
                self.revisions.pop(name, None)
            kind, rest = self.keys.split(name)
            if kind == "object":
                before, after = self.objects.get(key := object_key(rest)), self._declared(name, item) if item else None
                concerned |= any(one is not None and one.host == self.host for one in (before, after))
                _set(self.objects, key, after)
            elif kind == "host":
                _set(self.hosts, rest, Host.from_json(decode(name, item.value)) if item else None)
            elif kind == "own":
                _set(self.owners, rest, Owner.from_json(decode(name, item.value)) if item else None)
            elif kind == "meta" and rest.startswith("tenant/"):
                quota = Quota.from_json(decode(name, item.value)) if item else None
                _set(self.tenants, rest.removeprefix("tenant/"), quota)
            elif kind == "meta" and rest.startswith("guest/"):
                journey = Journey.from_json(decode(name, item.value)) if item else None
                _set(self.journeys, rest.removeprefix("guest/"), journey)
            elif kind == "live":
                (self.live.add if item else self.live.discard)(rest)
            elif name == self.keys.fleet_key:
                self.fleet = Fleet.from_json(decode(name, item.value)) if item else None
        return concerned

    def _declared(self, name: str, item: Item) -> Declared:
        if self.host and (elsewhere := declared_elsewhere(item.value, self.host)):
            return elsewhere
        declared = Declared.from_json(decode(name, item.value))
        if self.host and declared.host not in (self.host, ""):
            return Declared({}, declared.host, declared.deleting)
        return declared

    def owned(self, uuid: str, owner: Owner | None, revision: int) -> None:
        """Remember what was just written, before the watch says so."""
        _set(self.owners, uuid, owner)
        _set(self.revisions, self.keys.own(uuid), revision if owner else None)

    def elsewhere(self, host: str, keys: Iterable[Key]) -> list[Key]:
        """Which of these are another host's by now."""
        found = [key for key in keys if key in self.objects and key.kind not in SHARED]
        return [key for key in found if self.objects[key].host != host]

    def expected(self, host: str, local: Desired) -> set[Key]:
        """What a host has of others' because a guest is on its way to it."""
        names = {name for one in self.journeys.values() if one.is_expected(host) for name in one.controllers}
        mine = [one for one in local.controllers() if one.name in names]
        return {key for one in mine for key in (one.key, *one.depends_on)}

    def revision_of(self, key: Key) -> int:
        """Of an object's last write; 0: it is not there."""
        return self.revisions.get(self.keys.object(key), 0)

    def part(self, host: str) -> dict[Key, Declared]:
        """What a host has to do with: what is there, the remotes that it lies on, and every cluster: a target loads the
        module for it when it starts, and what moves here must not wait for that."""
        mine = {
            key: declared
            for key, declared in self.objects.items()
            if declared.host == host or (key.kind == Cluster.kind and not declared.deleting)
        }
        for declared in list(mine.values()):
            for below in declared.object.depends_on:
                if below.kind in SHARED and (shared := self.objects.get(below)):
                    mine[below] = shared
        return mine

    def desired(self, host: str | None = None) -> Desired:
        """What is wanted of one host, or of all.

        :raises UsageError: this version does not know an object.
        """
        return as_desired(self.objects if host is None else self.part(host))


def as_desired(objects: Mapping[Key, Declared]) -> Desired:
    """As one host's store has it."""
    return Desired({key: Entry(objects[key].object, deleting=objects[key].deleting) for key in sorted(objects)})


_K = TypeVar("_K")
_V = TypeVar("_V")


def _set(mapping: dict[_K, _V], key: _K, value: _V | None) -> None:
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value


def counted(view: View) -> Mapping[str, int]:
    """Controllers of each host."""
    found = dict.fromkeys(view.hosts, 0)
    for key, declared in view.objects.items():
        if key.kind == "controller" and not declared.deleting and declared.host in found:
            found[declared.host] += 1
    return found
