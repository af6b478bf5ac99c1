"""Making a fleet, and hosts that come and go, are labelled and cordoned.

A host that joins brings nothing, or all it has; one that leaves keeps all it has. A host's own store stays what its
engine reads.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from nvmuser.errors import ConflictError, FleetError, NotFoundError
from nvmuser.fleet.etcd.client import Client, Put, Transaction
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.progress import Progress
from nvmuser.fleet.proposal import Proposal
from nvmuser.fleet.records import KINDS, SHARED, Declared, Fleet, Host, as_recorded, decode, encode
from nvmuser.fleet.session import Session, opened
from nvmuser.fleet.settings import FleetSettings
from nvmuser.fleet.view import View
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.store.events import Actor


async def init(client: Client, keys: FleetKeys) -> Fleet:
    """Make a fleet, or find it made.

    :raises FleetError: etcd does not answer, or does not let us in.
    """
    fleet = Fleet(str(uuid.uuid4()), round(time.time(), 3))
    await client.write_if(Transaction({keys.fleet_key: 0}, (), {keys.fleet_key: Put(encode("fleet", fleet.to_json()))}))
    if (item := await client.get(keys.fleet_key)) is None:
        raise FleetError(f"etcd has no fleet {keys.fleet}, although it was just made")
    return Fleet.from_json(decode(item.key, item.value))


async def join(
    settings: FleetSettings, installation: str, local: Desired, actor: Actor, *, adopt: bool
) -> tuple[Progress, int]:
    """Become a host of a fleet. Returns where it begins, and how many objects came with it.

    :param installation: by which this host is known again (`hostfs.host_identity`).
    :param adopt: what this host has becomes the fleet's.
    :raises ConflictError: another host has this name, or objects of it have others' names.
    """
    async with opened(settings) as client:
        session = Session(client, FleetKeys(settings.fleet), settings.host)
        view = await session.view()
        known = view.hosts.get(settings.host)
        if known and known.id != installation:
            raise ConflictError(
                f"host {settings.host}: another host has this name in fleet {settings.fleet}; choose one with --name"
            )
        adopted = _adopted(view, settings, local, adopt=adopt)
        host = Host(settings.host, installation, known.labels if known else {})
        extra = {session.keys.host(settings.host): Put(encode("host", host.to_json()))}
        note = _note("join", known, host)
        revision = await session.writer(actor).write(adopted, extra, note=note)
        return Progress(view.cluster, revision), len(adopted.after)


def _adopted(view: View, settings: FleetSettings, local: Desired, *, adopt: bool) -> Proposal:
    mine = {one.key: one for one in local.wanted() if one.kind in KINDS}
    before = {key: view.objects[key] for key in mine if key in view.objects}
    foreign = [key for key, there in before.items() if there.host != settings.host and key.kind not in SHARED]
    if foreign:
        names = ", ".join(f"{key.words} (host {before[key].host})" for key in sorted(foreign)[:5])
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise ConflictError(f"the fleet has others of the same names: {names}{more}; rename them here first")
    new = {key: one for key, one in mine.items() if key not in before}
    if new and not adopt:
        raise ConflictError(
            f"this host has {len(new)} objects of its own ({min(new).words}, …): pass --adopt to make them the fleet's"
        )
    return Proposal(
        dict.fromkeys(new),
        {key: Declared.of(as_recorded(one), "" if key.kind in SHARED else settings.host) for key, one in new.items()},
        dict.fromkeys(new, 0),
        frozenset((settings.host,)),
    )


def _note(action: str, before: Host | None, after: Host | None) -> dict[str, Any]:
    """For the log of changes."""
    one = after or before
    return {
        "action": action,
        "kind": "host",
        "name": one.name if one else "",
        "before": before.to_json() if before else None,
        "after": after.to_json() if after else None,
    }


async def leave(settings: FleetSettings, actor: Actor) -> int:
    """Be a host of the fleet no more: its records go, and all that they describe stays on the host.

    Returns how many objects left with it.

    :raises FleetError: etcd does not answer.
    """
    async with opened(settings) as client:
        session = Session(client, FleetKeys(settings.fleet), settings.host)
        view = await session.view()
        keys = session.keys
        gone: dict[Key, Declared | None] = {key: one for key, one in view.objects.items() if one.host == settings.host}
        extra = dict.fromkeys((keys.host(settings.host), keys.live(settings.host), keys.seen(settings.host)))
        proposal = Proposal(gone, dict.fromkeys(gone), {key: view.revision_of(key) for key in gone})
        note = _note("leave", view.hosts.get(settings.host), None)
        await session.writer(actor).write(proposal, extra, note=note)
        return len(gone)


async def alter_host(session: Session, name: str, actor: Actor, **fields: object) -> Host:
    """Change what is said of a host: `cordoned`, or `labels`, of which one without a value goes.

    :raises NotFoundError: there is no such host. :raises StaleError: somebody else has just changed it.
    """
    view = await session.view()
    if (host := view.hosts.get(name)) is None:
        raise NotFoundError(f"host {name}: no such host; `nvmuser host list` shows those that there are")
    if isinstance(labels := fields.get("labels"), dict):
        merged = {**host.labels, **labels}
        fields = fields | {"labels": {key: value for key, value in merged.items() if value}}
    after = replace(host, **fields)  # type: ignore[arg-type]
    if after != host:
        key = session.keys.host(name)
        write = {key: Put(encode(f"host {name}", after.to_json()))}
        expect, note = {key: view.revisions[key]}, _note("update", host, after)
        await session.writer(actor).write(Proposal(), write, expect, note)
    return after
