"""Brings back into etcd what a host has, after etcd has lost its data or came back from an older backup.

What a host's own store has, and its target serves, is right: no host drops or reopens anything for what etcd forgot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvmuser.errors import ConflictError, UsageError
from nvmuser.fleet import membership
from nvmuser.fleet.etcd.client import Put
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.progress import Progress
from nvmuser.fleet.proposal import Proposal
from nvmuser.fleet.records import KINDS, SHARED, Declared, Host, as_recorded, encode
from nvmuser.fleet.session import Session, opened
from nvmuser.fleet.settings import FleetSettings
from nvmuser.fleet.view import View
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.store.events import Actor


@dataclass(frozen=True)
class Restored:
    """What came of it."""

    progress: Progress
    written: tuple[Key, ...]
    dropped: tuple[Key, ...]
    """Records of this host for what it does not have."""


async def restore(settings: FleetSettings, installation: str, local: Desired, actor: Actor, *, drop: bool) -> Restored:
    """Write back what this host has.

    :param drop: records for what it does not have may go: it was deleted since, or never came to be.
    :raises ConflictError: etcd has objects of the same names on other hosts.
    :raises UsageError: records would go, and `drop` does not say so.
    """
    async with opened(settings) as client:
        session = Session(client, FleetKeys(settings.fleet), settings.host)
        await membership.init(client, session.keys)
        view = await session.view()
        known = view.hosts.get(settings.host)
        if known and known.id != installation:
            raise ConflictError(f"host {settings.host}: another host has this name in fleet {settings.fleet}")
        proposal = _proposal(view, settings.host, local)
        dropped = tuple(key for key, record in proposal.after.items() if record is None)
        if dropped and not drop:
            names = ", ".join(key.words for key in dropped[:5]) + (", …" if len(dropped) > 5 else "")
            raise UsageError(
                f"etcd has {len(dropped)} objects on host {settings.host} that are not there ({names}): deleted since, "
                "or declared while it was away; pass --drop to forget them"
            )
        host = known or Host(settings.host, installation)
        extra = {session.keys.host(settings.host): Put(encode("host", host.to_json()))}
        note = {"action": "import", "kind": "host", "name": settings.host}
        revision = await session.writer(actor).write(proposal, extra, note=note)
        written = tuple(key for key, record in proposal.after.items() if record)
        return Restored(Progress(view.cluster, revision), written, dropped)


def _proposal(view: View, host: str, local: Desired) -> Proposal:
    mine = {one.key: one for one in local.wanted() if one.kind in KINDS}
    foreign = [key for key in mine if key in view.objects and view.objects[key].host not in (host, "")]
    if foreign:
        first = foreign[0]
        raise ConflictError(
            f"{first.words}: is on this host, and in etcd on host {view.objects[first].host}; one of both has to go: "
            "see `nvmuser fleet list` there"
        )
    after: dict[Key, Declared | None] = {}
    for key, one in mine.items():
        there = view.objects.get(key)
        record = Declared.of(as_recorded(one, there.object if there else None), "" if key.kind in SHARED else host)
        if record != there:
            after[key] = record
    before: Mapping[Key, Declared] = view.objects
    mine_there = {key for key, there in before.items() if there.host == host and not there.deleting}
    after |= dict.fromkeys(mine_there - mine.keys())
    return Proposal({key: before.get(key) for key in after}, after, {key: view.revision_of(key) for key in after})
