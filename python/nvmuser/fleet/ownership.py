"""Who may have a volume open, as etcd records it: claimed before it is opened, given up after it was closed.

A record has no lease and outlives its owner: only the owner gives it up, or somebody who has seen the owner fenced.
Each new owner has a greater epoch. Volumes whose data is on one host alone need none: they never move.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from nvmuser.errors import ConflictError, StaleError
from nvmuser.fleet.etcd.client import Client, Put, Transaction
from nvmuser.fleet.fences import Fences, Recorded, is_owned
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.part import changes
from nvmuser.fleet.records import Declared, Owner, encode
from nvmuser.fleet.ulid import ulid
from nvmuser.fleet.view import View
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Volume

CLAIMED, OPEN, FREE = "claimed", "open", "free"


class Ownership:
    """Of one host."""

    def __init__(self, keys: FleetKeys, host: str, fences: Fences) -> None:
        self._keys = keys
        self._host = host
        self._fences = fences

    def foreign(self, view: View, part: Mapping[Key, Declared]) -> dict[Key, Owner]:
        """Volumes of this host's part that another host still owns, by which they must not be opened here."""
        return {
            volume.key: owner
            for volume in _owned(part)
            if (owner := view.owners.get(volume.uuid)) and owner.host != self._host and owner.state != FREE
        }

    def stale(self, view: View, part: Mapping[Key, Declared], local: Desired) -> set[Key]:
        """Volumes of this host's part that its store has from an earlier epoch: they went to another host and came back
        before this one has looked. The storage may have shut it out of what it has open."""
        return {
            volume.key
            for volume in _owned(part)
            if volume.key in local.entries
            and (owner := view.owners.get(volume.uuid))
            and (owner.host != self._host or owner.state == FREE)
        }

    async def claim(self, client: Client, view: View, part: Mapping[Key, Declared]) -> None:
        """Own what is to be opened here, with the means by which we could be fenced, before it is opened.

        :raises ConflictError: another host was faster. :raises NvmuserError: etcd or the storage does not answer.
        """
        for volume in _owned(part):
            owner, fence = view.owners.get(volume.uuid), self._fences.of(volume)
            mine = owner is not None and owner.host == self._host and owner.state != FREE
            if owner and mine and (owner.fences or fence is None):
                continue
            before = owner or Owner(volume.name, self._host, 0)
            epoch = before.epoch if mine else before.epoch + 1
            next_ = replace(before, volume=volume.name, host=self._host, epoch=epoch, state=CLAIMED)
            await self._write(client, view, volume.uuid, replace(next_, fences=self._chosen(volume)))

    def changes(
        self,
        view: View,
        part: Mapping[Key, Declared],
        local: Desired,
        moved: Collection[Key] = (),
        *,
        lost: bool = False,
    ) -> Iterator[Change]:
        """As `part.changes`, with what is recorded of images."""
        made = [uuid for uuid, owner in view.owners.items() if owner.made]
        return changes(part, local, moved, lost=lost, made=made)

    async def candidate(self, client: Client, view: View, volume: Volume) -> None:
        """Record beside the owner's fences those of this host, which is about to take the volume from it: whoever comes
        next shuts both out.

        :raises NvmuserError: as of `claim`.
        """
        owner = view.owners[volume.uuid]
        others = tuple(one for one in owner.fences if one.get("host") != self._host)
        await self._write(client, view, volume.uuid, replace(owner, fences=(*others, *self._chosen(volume))))

    async def taken(self, client: Client, view: View, volume: Volume) -> None:
        """The storage has shut the former owner out, and let this host in.

        :raises NvmuserError: as of `claim`.
        """
        owner = view.owners[volume.uuid]
        mine = tuple(one for one in owner.fences if one.get("host") == self._host)
        next_ = replace(owner, host=self._host, epoch=owner.epoch + 1, state=CLAIMED, fences=mine)
        await self._write(client, view, volume.uuid, next_)

    async def opened(self, client: Client, view: View, part: Mapping[Key, Declared], local: Desired) -> None:
        """Record what was opened, and by what the storage knows us now, which another process may have changed.

        :param local: what this host's store has.
        """
        for volume in _owned(part):
            owner, entry = view.owners.get(volume.uuid), local.entries.get(volume.key)
            if owner is None or owner.host != self._host or owner.state == FREE or entry is None:
                continue
            made = isinstance(entry.object, Volume) and volume.backend == "rbd" and entry.object.owned
            others = tuple(one for one in owner.fences if one.get("host") != self._host)
            fences = (*others, *self._chosen(volume))
            same = len(fences) == len(owner.fences) and all(one in owner.fences for one in fences)
            now = replace(owner, state=OPEN, fences=owner.fences if same else fences, made=made)
            if now != owner:
                await self._write(client, view, volume.uuid, now)

    async def connecting(self, client: Client, view: View, cluster: Cluster, address: str) -> None:
        """Complete records that lack the address by which a cluster knows this host, before an image is opened.

        :raises NvmuserError: it could not be recorded.
        """

        def lacks(fence: Recorded) -> bool:
            here = (fence.get("host"), fence.get("cluster")) == (self._host, cluster.name)
            return here and not fence.get("address")

        for uuid, owner in list(view.owners.items()):
            if any(map(lacks, owner.fences)):
                fences = tuple({**one, "address": address} if lacks(one) else one for one in owner.fences)
                await self._write(client, view, uuid, replace(owner, fences=fences))

    async def give_up(self, client: Client, view: View, present: Collection[Key]) -> bool:
        """What this host owns and does not have any more, the next may have. A deleted volume has no owner.

        :param present: keys of what this host's store still has.
        :returns: whether something is to be given up that is not closed yet, as while a target starts.
        """
        there = {key.name for key in present if key.kind == "volume"}
        volumes, left = {key.name: one for key, one in view.objects.items() if key.kind == "volume"}, False
        for uuid, owner in list(view.owners.items()):
            record = volumes.get(owner.volume)
            goes = record is None or record.deleting or record.host != self._host
            if owner.host != self._host or owner.state == FREE or not goes:
                continue
            if owner.volume in there:
                left |= record is not None and not record.deleting
                continue
            next_ = replace(owner, state=FREE, fences=()) if record and not record.deleting else None
            await self._write(client, view, uuid, next_)
        return left

    def _chosen(self, volume: Volume) -> tuple[Recorded, ...]:
        fence = self._fences.of(volume)
        return (fence.choose(volume),) if fence else ()

    async def _write(self, client: Client, view: View, uuid: str, owner: Owner | None) -> None:
        name, witness = self._keys.own(uuid), self._keys.event(ulid())
        event = {"time": round(time.time(), 3), "who": "nvmuser", "host": self._host, "own": uuid}
        event |= {
            "action": owner.state if owner else "no owner",
            "kind": "volume",
            "name": owner.volume if owner else "",
        }
        note = Put(encode(witness, event))
        put = Put(encode(name, owner.to_json())) if owner else None
        expect = {name: view.revisions.get(name, 0)}
        whole = Transaction(expect, (self._keys.fleet_key,), {name: put, witness: note})
        revision = await client.commit(whole, witness)
        if revision is None:
            raise StaleError(f"volume {owner.volume if owner else uuid}: its owner has just changed; look again")
        view.owned(uuid, owner, revision)


def check_fences(view: View, volumes: Iterable[Volume], to: str) -> dict[Key, int]:
    """Epochs of the owners from whom volumes would be taken by a host.

    :raises ConflictError: a volume cannot be fenced.
    """
    found: dict[Key, int] = {}
    for volume in volumes:
        owner = view.owners.get(volume.uuid)
        if owner is None or owner.state == FREE or owner.host == to:
            continue
        if not owner.fences:
            raise ConflictError(
                f"volume {volume.name}: host {owner.host} may have it open, and cannot be shut out: its storage has "
                "no fence; make sure that the host is off, and see docs/fleet.md"
            )
        found[volume.key] = owner.epoch
    return found


def _owned(part: Mapping[Key, Declared]) -> list[Volume]:
    objects = [one.object for one in part.values() if not one.deleting]
    return [one for one in objects if isinstance(one, Volume) and is_owned(one)]
