"""What a guest takes along from one host of a fleet to another: its controllers, with the volumes that they show.

While it is on its way, both hosts are recorded as those that may have its volumes open, so that whoever takes them by
force shuts out both; which of them does is the guest's migration's to decide. Once it has arrived, they are the
destination's, by one transaction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace

from nvmuser.errors import ConflictError, UsageError
from nvmuser.fleet.etcd.client import Put
from nvmuser.fleet.fences import Fences, is_owned
from nvmuser.fleet.journey import ARRIVED, RELEASED, Journey
from nvmuser.fleet.move import check, company
from nvmuser.fleet.ownership import OPEN, Ownership
from nvmuser.fleet.part import as_carried_out
from nvmuser.fleet.records import SHARED, Declared, encode
from nvmuser.fleet.session import Session
from nvmuser.fleet.travel import Log, Written
from nvmuser.fleet.ulid import ulid
from nvmuser.fleet.view import View
from nvmuser.fleet.writer import BATCH
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Volume

Baggage = Mapping[Key, Declared]


def baggage(view: View, journey: Journey) -> Baggage:
    """All that goes with a guest.

    :raises NotFoundError: there is no such controller. :raises ConflictError: it cannot go, or not with this guest.
    """
    mine: dict[Key, Declared] = {}
    for name in journey.controllers:
        mine |= company(view, Key("controller", name))
    shown = {below for one in mine.values() if isinstance(one.object, Controller) for below in one.object.depends_on}
    for key in mine:
        if key.kind == "controller" and key.name not in journey.controllers:
            raise ConflictError(f"{key.words}: shows a volume of the guest's, and is not the guest's")
        if key.kind == "volume" and key not in shown:
            raise ConflictError(f"{key.words}: belongs to the guest's volumes, and the guest does not have it")
    if elsewhere := [key for key, one in mine.items() if one.host != journey.source]:
        raise ConflictError(f"{elsewhere[0].words}: is on host {mine[elsewhere[0]].host}, not on {journey.source}")
    if len(mine) > BATCH:
        raise UsageError(f"guest {journey.guest}: {len(mine)} objects would move at once; at most {BATCH}")
    check(view, mine, journey.to)
    return mine


def _owned(mine: Baggage) -> list[Volume]:
    return [one.object for one in mine.values() if isinstance(one.object, Volume) and is_owned(one.object)]


async def expect(session: Session, journey: Journey, fences: Fences, local: Desired) -> Change:
    """Record that the destination may have the guest's volumes open too, by which it would be shut out. Returns what it
    has to declare for the guest: closed, until it arrives.

    :param fences: of the destination; `local` is what its store has.
    :raises NvmuserError: the guest cannot come.
    """
    view = await session.view()
    mine, ownership = baggage(view, journey), Ownership(session.keys, journey.to, fences)
    for volume in _owned(mine):
        owner = view.owners.get(volume.uuid)
        if owner is None or owner.host != journey.source:
            raise ConflictError(f"volume {volume.name}: host {journey.source} does not own it")
        await ownership.candidate(session.client, view, volume)
    made = [uuid for uuid, owner in view.owners.items() if owner.made]
    below = {key for one in mine.values() for key in one.object.depends_on if key.kind in SHARED}
    needed = [*(view.objects[key].object for key in sorted(below)), *(one.object for one in mine.values())]
    new = [_closed(as_carried_out(one, made)) for one in needed if one.key not in local.entries]
    for one in local.controllers():
        if one.key in mine and not one.away:
            raise ConflictError(f"{one.key.words}: its volumes are open here already: no guest can arrive with them")
    return Change(create=tuple(new))


def _closed(one: AnyObject) -> AnyObject:
    return replace(one, away=True) if isinstance(one, Controller) else one


async def settle(session: Session, log: Log, before: Written, after: Journey) -> None:
    """The guest runs at the destination: what it has is that host's from now on.

    :raises ConflictError: somebody has taken its volumes by force meanwhile.
    :raises FleetError: etcd does not answer. May be called again then.
    """
    while True:
        view, arrived = await session.view(), replace(after, state=ARRIVED)
        groups = [company(view, Key("controller", name)) for name in after.controllers]
        mine = {key: one for group in groups for key, one in group.items()}
        if any(one.host != after.source for one in mine.values()):
            raise ConflictError(f"{min(mine).words}: was taken from host {after.source} meanwhile")
        expect = {session.keys.object(key): view.revision_of(key) for key in mine}
        writes: dict[str, Put | None] = {}
        for key, one in mine.items():
            record = replace(one, host=after.to, force=False, seize=0)
            writes[session.keys.object(key)] = Put(encode(key.words, record.to_json()))
            if key.kind == "controller":
                writes[session.keys.event(ulid())] = Put(_event(after, key))
        for volume in _owned(mine):
            owner, name = view.owners.get(volume.uuid), session.keys.own(volume.uuid)
            if owner is None or owner.host != after.source:
                raise ConflictError(f"volume {volume.name}: was taken from host {after.source} meanwhile")
            fences = tuple(one for one in owner.fences if one.get("host") == after.to)
            next_ = replace(owner, host=after.to, epoch=owner.epoch + 1, state=OPEN, fences=fences)
            writes[name], expect[name] = Put(encode(name, next_.to_json())), view.revisions[name]
        try:
            await log.write(before, arrived, writes, expect)
            return
        except ConflictError:
            now = await log.read()
            if now is None or now.revision != before.revision:
                raise


def _event(journey: Journey, key: Key) -> bytes:
    event = {"time": round(time.time(), 3), "who": "nvmuser", "host": journey.to, "action": "migrated"}
    event |= {"kind": key.kind, "name": key.name, "on": journey.to, "guest": journey.guest}
    return json.dumps(event, separators=(",", ":")).encode()


async def give_up(session: Session, log: Log, before: Written, reason: str) -> None:
    """The guest does not come: the destination may have nothing of it open any more.

    :raises ConflictError: somebody else has just decided otherwise. :raises FleetError: etcd does not answer.
    """
    view, after = await session.view(), replace(before.journey, state=RELEASED, reason=reason)
    shown = [view.objects.get(Key("controller", name)) for name in after.controllers]
    volumes = {below for one in shown if one for below in one.object.depends_on}
    writes: dict[str, Put | None] = {}
    expect: dict[str, int] = {}
    for uuid, owner in view.owners.items():
        fences = tuple(one for one in owner.fences if one.get("host") != after.to)
        if Key("volume", owner.volume) in volumes and owner.host == after.source and fences != owner.fences:
            name = session.keys.own(uuid)
            writes[name] = Put(encode(name, replace(owner, fences=fences).to_json()))
            expect[name] = view.revisions[name]
    await log.write(before, after, writes, expect)
