"""Who may have a volume open, as etcd records it: claimed before it is opened, given up after it was closed.

A record has no lease and outlives its owner: only the owner gives it up, or somebody who has seen the owner fenced.
Each new owner has a greater epoch. Volumes whose data is on one host alone need none: they never move.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from nvmuser.errors import ConflictError, FleetError
from nvmuser.fleet.etcd.client import Client, Put, Transaction
from nvmuser.fleet.fences import Fences, moves
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.records import Declared, Owner, encode
from nvmuser.fleet.ulid import ulid
from nvmuser.fleet.view import View
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume

CLAIMED, OPEN, FREE = "claimed", "open", "free"


class Ownership:
    """Of one host."""

    def __init__(self, keys: FleetKeys, host: str, fences: Fences) -> None:
        self._keys = keys
        self._host = host
        self._fences = fences

    def foreign(self, view: View, part: Mapping[Key, Declared]) -> dict[Key, str]:
        """Volumes of this host's part that another host still owns, by which they must not be opened here."""
        return {
            volume.key: owner.host
            for volume in _moving(part)
            if (owner := view.owners.get(volume.uuid)) and owner.host != self._host and owner.state != FREE
        }

    async def claim(self, client: Client, view: View, part: Mapping[Key, Declared]) -> None:
        """Own what is to be opened here, with the means by which we could be fenced, before it is opened.

        :raises ConflictError: another host was faster. :raises NvmuserError: etcd or the storage does not answer.
        """
        for volume in _moving(part):
            owner, fence = view.owners.get(volume.uuid), self._fences.of(volume)
            mine = owner is not None and owner.host == self._host and owner.state != FREE
            if owner and mine and (owner.fences or fence is None):
                continue
            epoch = 1 if owner is None else owner.epoch if mine else owner.epoch + 1
            chosen = (fence.choose(volume),) if fence else ()
            await self._write(client, view, volume.uuid, Owner(volume.name, self._host, epoch, CLAIMED, chosen))

    async def opened(self, client: Client, view: View, part: Mapping[Key, Declared], present: Iterable[Key]) -> None:
        """Record what was opened.

        :param present: keys of what this host's store has.
        """
        there = set(present)
        for volume in _moving(part):
            owner = view.owners.get(volume.uuid)
            if owner and owner.host == self._host and owner.state == CLAIMED and volume.key in there:
                await self._write(client, view, volume.uuid, replace(owner, state=OPEN))

    async def give_up(self, client: Client, view: View, present: Iterable[Key]) -> None:
        """What this host owns and does not have any more, the next may have. A deleted volume has no owner.

        :param present: keys of what this host's store still has.
        """
        there = {key.name for key in present if key.kind == "volume"}
        mine = {uuid: owner for uuid, owner in view.owners.items() if owner.host == self._host and owner.state != FREE}
        if not (closed := {uuid: owner for uuid, owner in mine.items() if owner.volume not in there}):
            return
        volumes = {key.name: one for key, one in view.objects.items() if key.kind == "volume"}
        for uuid, owner in closed.items():
            record = volumes.get(owner.volume)
            if record is None or record.deleting or record.host != self._host:
                next_ = replace(owner, state=FREE, fences=()) if record and not record.deleting else None
                await self._write(client, view, uuid, next_)

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
            raise ConflictError(f"volume {owner.volume if owner else uuid}: its owner has just changed; look again")
        view.owned(uuid, owner, revision)


async def fenced(fences: Fences, view: View, volumes: Iterable[Volume], to: str) -> dict[str, Owner]:
    """Shut the present owners of volumes out, for certain, and return the records of the next one, by UUID.

    :raises ConflictError: a volume cannot be fenced. :raises FleetError: a fence could not be confirmed: nothing moves.
    """
    found: dict[str, Owner] = {}
    for volume in volumes:
        owner = view.owners.get(volume.uuid)
        if owner is None or owner.state == FREE:
            continue
        if not owner.fences:
            raise ConflictError(
                f"volume {volume.name}: host {owner.host} may have it open, and cannot be shut out: its storage has "
                "no fence; make sure that the host is off, and see docs/fleet.md"
            )
        for recorded in owner.fences:
            if (fence := fences.named(recorded)) is None:
                raise FleetError(f"volume {volume.name}: this host has no fence of kind {recorded.get('kind')!r}")
            await fence.confirm(volume, recorded)
        found[volume.uuid] = Owner(volume.name, to, owner.epoch + 1, CLAIMED)
    return found


def _moving(part: Mapping[Key, Declared]) -> list[Volume]:
    objects = [one.object for one in part.values() if not one.deleting]
    return [one for one in objects if isinstance(one, Volume) and moves(one)]
