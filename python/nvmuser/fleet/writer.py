"""Carries a proposal into etcd, all of it or nothing, with the log of what was changed.

What fits into one transaction is one. A larger change is many, and so that nobody sees half of it: it begins with a
key, `meta/change`, while which nobody else changes anything and no host carries anything out. Who makes it is known to
live by a lease; if it ends, the next command takes back what was written: etcd still knows how it was.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nvmuser.errors import ConflictError, FleetError, StaleError, UnknownOutcome
from nvmuser.fleet.etcd import lease
from nvmuser.fleet.etcd.client import Client, Item, Put, Transaction
from nvmuser.fleet.keys import FleetKeys, object_key, prefix
from nvmuser.fleet.proposal import Proposal
from nvmuser.fleet.records import MAX_BYTES, Declared, decode, encode
from nvmuser.fleet.ulid import ulid
from nvmuser.model.keys import Key

BATCH = 50
"""Objects of one transaction: with as many events, below the 128 operations that etcd takes by default."""
LEASE_S = 10
EVENTS_KEPT = 20_000
_LOOK_EACH = 16
"""One in so many changes looks whether there are more events than are kept."""


@dataclass(frozen=True)
class Author:
    """Who changes something: a user or the like, how, and on which host."""

    who: str
    source: str
    host: str


class Writer:
    """Of one command: it is used by one at a time."""

    def __init__(self, client: Client, keys: FleetKeys, author: Author) -> None:
        self._client = client
        self._keys = keys
        self._author = author

    async def write(
        self,
        proposal: Proposal,
        extra: Mapping[str, Put | None] | None = None,
        expect: Mapping[str, int] | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> int:
        """Carry it out. Returns the revision from which on it holds.

        :param extra: further keys that are written with it.
        :param expect: further keys → revision.
        :param note: what the log says of what is no object: `action`, `kind`, `name`, `before`, `after`.
        :raises StaleError: somebody has changed something of it meanwhile.
        :raises FleetError: etcd does not answer, or refuses: nothing was changed, unless it is an UnknownOutcome.
        """
        change = ulid()
        if len(proposal.after) > BATCH:
            return await self._write_large(proposal, change, extra or {}, expect or {}, note or {})
        looked_at = {self._keys.object(key): revision for key, revision in proposal.expect.items()}
        transaction, witness = self._part(proposal, list(proposal.after), change)
        if note or not witness:
            witness = self._keys.event(ulid())
            transaction[witness] = Put(self._event(change, note=note or {}))
        whole = Transaction(
            {**looked_at, **(expect or {}), self._keys.change: 0},
            (self._keys.fleet_key,),
            {**transaction, **(extra or {})},
        )
        if (revision := await self._client.commit(whole, witness)) is None:
            await self._explain()
            raise StaleError("somebody else has just changed what this changes; look again")
        if secrets.randbelow(_LOOK_EACH) == 0:
            await self._forget_events()
        return revision

    async def _forget_events(self) -> None:
        """The oldest go. Where etcd does not answer any more, the next one does it: the change has been made."""
        with contextlib.suppress(FleetError):
            await self._client.keep_last(self._keys.events, EVENTS_KEPT)

    async def _explain(self) -> None:
        """Where a transaction was not as expected for a reason that is no competitor's change.

        :raises ConflictError: somebody makes a large change. :raises FleetError: there is no such fleet.
        """
        if await self._client.get(self._keys.fleet_key) is None:
            raise FleetError(f"etcd has no fleet {self._keys.fleet}")
        if item := await self._client.get(self._keys.change):
            who = decode(item.key, item.value)
            if await self._client.get(self._keys.writer):
                raise ConflictError(f"{who.get('who')} on {who.get('host')} is changing many objects; try again")
            await self.take_back(item)

    def _part(
        self, proposal: Proposal, keys: list[Key], change: str, action: str = ""
    ) -> tuple[dict[str, Put | None], str]:
        """What a transaction writes, and the event that witnesses it."""
        writes: dict[str, Put | None] = {}
        witness = ""
        for key in keys:
            before, after = proposal.before.get(key), proposal.after[key]
            value = encode(key.words, after.to_json()) if after else None
            writes[self._keys.object(key)] = Put(value) if value else None
            witness = self._keys.event(ulid())
            writes[witness] = Put(self._event(change, action or _action(before, after), key, before, after))
        return writes, witness

    def _event(
        self,
        change: str,
        action: str = "",
        key: Key | None = None,
        before: Declared | None = None,
        after: Declared | None = None,
        note: Mapping[str, Any] | None = None,
    ) -> bytes:
        event: dict[str, Any] = {
            "time": round(time.time(), 3),
            "who": self._author.who,
            "source": self._author.source,
            "host": self._author.host,
            "change": change,
            "action": action,
            **(note or {}),
        }
        if key:
            event |= {"kind": key.kind, "name": key.name, "on": (after or before or Declared({})).host}
            event |= {"before": before.spec if before else None, "after": after.spec if after else None}
        if len(raw := json.dumps(event, separators=(",", ":")).encode()) > MAX_BYTES and key:
            event |= {"before": _differing(before, after), "after": _differing(after, before), "cut": True}
            raw = json.dumps(event, separators=(",", ":")).encode()
        return raw if len(raw) <= MAX_BYTES else json.dumps(event | {"before": None, "after": None}).encode()

    # -- more than one transaction ---------------------------------------------------------------------------

    async def _write_large(
        self,
        proposal: Proposal,
        change: str,
        extra: Mapping[str, Put | None],
        further: Mapping[str, int],
        note: Mapping[str, Any],
    ) -> int:
        encoded = {key: one and encode(key.words, one.to_json()) for key, one in proposal.after.items()}
        assert len(encoded) == len(proposal.after)  # too large an object is found before anything is written
        number = await lease.grant(self._client, LEASE_S)
        begun = await self._begin(change, number, len(encoded))
        last = time.monotonic()
        expect = {self._keys.object(key): revision for key, revision in proposal.expect.items()}
        try:
            for keys in _batches(list(proposal.after)):
                if time.monotonic() - last > LEASE_S / 4:
                    await lease.renew(self._client, number)
                    last = time.monotonic()
                writes, witness = self._part(proposal, keys, change)
                mine = {name: expect.get(name, 0) for name in writes if name in expect}
                await self._step(Transaction({**mine, self._keys.change: begun}, (self._keys.writer,), writes), witness)
            for names in _batches(sorted(set(expect) - set(map(self._keys.object, proposal.after)))):
                check, witness = {name: expect[name] for name in names}, self._keys.event(ulid())
                note = {witness: Put(self._event(change, "check"))}
                await self._step(Transaction({**check, self._keys.change: begun}, (), note), witness)
            revision = await self._end(change, begun, extra, note, further)
            await self._forget_events()
            return revision
        except UnknownOutcome:
            raise
        except FleetError as error:
            if item := await self._client.get(self._keys.change):
                await self.take_back(item, mine=True)
            raise type(error)(f"{error}; nothing was changed") from error
        except StaleError:
            if item := await self._client.get(self._keys.change):
                await self.take_back(item, mine=True)
            raise

    async def _step(self, transaction: Transaction, witness: str) -> int:
        revision = await self._client.commit(transaction, witness)
        if revision is None:
            raise StaleError("somebody else has just changed what this changes; look again")
        return revision

    async def _begin(self, change: str, number: int, count: int) -> int:
        """Returns the revision by which the change is known."""
        content = {"id": change, "who": self._author.who, "host": self._author.host, "objects": count}
        witness = self._keys.event(ulid())
        writes = {
            self._keys.change: Put(json.dumps(content).encode()),
            self._keys.writer: Put(change.encode(), number),
            witness: Put(self._event(change, "begin")),
        }
        transaction = Transaction({self._keys.change: 0}, (self._keys.fleet_key,), writes)
        if (revision := await self._client.commit(transaction, witness)) is None:
            await self._explain()
            raise StaleError("somebody else has just changed the fleet; look again")
        return revision

    async def _end(
        self,
        change: str,
        begun: int,
        extra: Mapping[str, Put | None],
        note: Mapping[str, Any] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> int:
        witness = self._keys.event(ulid())
        event = Put(self._event(change, "end", note=note))
        writes = {self._keys.change: None, self._keys.writer: None, witness: event, **extra}
        return await self._step(Transaction({**(expect or {}), self._keys.change: begun}, (), writes), witness)

    async def take_back(self, item: Item, *, mine: bool = False) -> None:
        """Restore what an abandoned change has written: how it was before the change began, etcd still knows.

        :param item: `meta/change` as it was read.
        :raises ConflictError: somebody else does so, or its author has come back.
        :raises FleetError: etcd does not answer, or has forgotten how it was.
        """
        content = decode(item.key, item.value)
        change = str(content.get("id"))
        if not mine:
            number = await lease.grant(self._client, LEASE_S)
            witness = self._keys.event(ulid())
            note = Put(self._event(change, "take over"))
            writes = {self._keys.writer: Put(change.encode(), number), witness: note}
            expect = {self._keys.writer: 0, self._keys.change: item.revision}
            if await self._client.commit(Transaction(expect, (), writes), witness) is None:
                raise ConflictError("an abandoned change is being taken back by somebody else; try again")
        objects = prefix(f"{self._keys.root}object/")
        before = (await self._client.listing(objects, item.revision)).items
        now = (await self._client.listing(objects)).items
        wrong = [name for name in {**before, **now} if _value(before.get(name)) != _value(now.get(name))]
        for names in _batches(wrong):
            keys = {object_key(self._keys.split(name)[1]): name for name in names}
            undo = Proposal(
                {key: _declared(now.get(name)) for key, name in keys.items()},
                {key: _declared(before.get(name)) for key, name in keys.items()},
            )
            writes_, witness = self._part(undo, list(keys), change, "take back")
            await self._step(Transaction({self._keys.change: item.revision}, (), writes_), witness)
        await self._end(change, item.revision, {})
        if not mine:
            raise StaleError(
                f"a change of many objects by {content.get('who')} on {content.get('host')} was never finished, and "
                "has been taken back; look again"
            )


def _value(item: Item | None) -> bytes | None:
    return item.value if item else None


def _declared(item: Item | None) -> Declared | None:
    return Declared.from_json(decode(item.key, item.value)) if item else None


def _action(before: Declared | None, after: Declared | None) -> str:
    if before is None:
        return "create"
    if after is None:
        return "gone"
    if after.deleting != before.deleting:
        return "delete" if after.deleting else "restore"
    return "move" if after.host != before.host else "update"


def _differing(one: Declared | None, other: Declared | None) -> dict[str, Any] | None:
    """The fields of one that are otherwise in the other."""
    if one is None:
        return None
    return {key: value for key, value in one.spec.items() if not other or other.spec.get(key) != value}


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    for first in itertools.count(0, BATCH):
        if first >= len(items):
            return
        yield items[first : first + BATCH]
