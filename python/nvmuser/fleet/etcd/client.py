"""Keys, transactions and leases of etcd, typed. A transaction whose outcome is unknown is read back, never repeated.

Owns nothing but the form: what the keys are is `nvmuser.fleet.keys`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nvmuser.errors import FleetUnavailable, UnknownOutcome
from nvmuser.fleet.etcd import connection as grpc_methods
from nvmuser.fleet.etcd.connection import Connection
from nvmuser.fleet.etcd.messages import BY_CREATE, BY_MOD, CLASSES, DESCENDING, EQUAL

PAGE = 2000
"""Keys that are asked for at once: a page of objects is below 8 MiB."""
VOID = b"{}"
"""Value of a witness of a transaction that was not carried out, and never will be."""


@dataclass(frozen=True)
class Item:
    """A key as it was read."""

    key: str
    value: bytes
    created: int
    """Revision in which the key was made."""
    revision: int
    """Revision in which it was written last."""


@dataclass(frozen=True)
class Listing:
    """All keys of a range, as they were at one revision."""

    revision: int
    items: dict[str, Item]
    cluster: int
    """Which etcd it is."""


@dataclass(frozen=True)
class Put:
    """:param lease: with which the key goes; 0: it stays."""

    value: bytes
    lease: int = 0


@dataclass(frozen=True)
class Transaction:
    """All of it or nothing.

    :param expect: key → revision of its last write; 0: it must not be there.
    :param alive: keys that must be there, whatever was written.
    :param write: key → its new value; None deletes it.
    """

    expect: Mapping[str, int] = field(default_factory=dict)
    alive: Sequence[str] = ()
    write: Mapping[str, Put | None] = field(default_factory=dict)

    def message(self) -> Any:
        """As etcd has it."""
        compare = [_compare(key, BY_MOD, mod_revision=revision) for key, revision in self.expect.items()]
        # A key that is not there has the creation revision 0.
        compare += [_compare(key, BY_CREATE, result=1, create_revision=0) for key in self.alive]
        return CLASSES["TxnRequest"](compare=compare, success=[_op(key, put) for key, put in self.write.items()])


def _compare(key: str, target: int, result: int = EQUAL, **revision: int) -> Any:
    return CLASSES["Compare"](key=key.encode(), target=target, result=result, **revision)


def _op(key: str, put: Put | None) -> Any:
    if put is None:
        return CLASSES["RequestOp"](request_delete_range=CLASSES["DeleteRangeRequest"](key=key.encode()))
    request = CLASSES["PutRequest"](key=key.encode(), value=put.value, lease=put.lease)
    return CLASSES["RequestOp"](request_put=request)


class Client:
    """Of one connection, which it does not own."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def get(self, key: str, revision: int = 0) -> Item | None:
        """:param revision: as it was then; 0: now.
        :raises FleetError: etcd does not answer, or no longer knows that revision."""
        request = CLASSES["RangeRequest"](key=key.encode(), revision=revision)
        reply = await self.connection.read(grpc_methods.RANGE, request)
        return item(reply.kvs[0]) if reply.kvs else None

    async def listing(self, range_: tuple[bytes, bytes], revision: int = 0) -> Listing:
        """All keys of a range, page by page, at one revision.

        :param range_: the first key, and the first one after the last.
        :param revision: as it was then; 0: now.
        :raises FleetError: etcd does not answer, or no longer knows that revision.
        """
        start, end = range_
        items, cluster = dict[str, Item](), 0
        while True:
            request = CLASSES["RangeRequest"](key=start, range_end=end, limit=PAGE, revision=revision)
            reply = await self.connection.read(grpc_methods.RANGE, request)
            revision, cluster = revision or reply.header.revision, reply.header.cluster_id
            items |= {one.key: one for one in map(item, reply.kvs)}
            if not reply.more:
                return Listing(revision, items, cluster)
            start = reply.kvs[-1].key + b"\0"

    async def last(self, range_: tuple[bytes, bytes], count: int) -> list[Item]:
        """The last keys of a range, in the order of the keys.

        :raises FleetError: etcd does not answer.
        """
        start, end = range_
        request = CLASSES["RangeRequest"](key=start, range_end=end, limit=count, sort_order=DESCENDING)
        reply = await self.connection.read(grpc_methods.RANGE, request)
        return [item(found) for found in reversed(reply.kvs)]

    async def keep_last(self, range_: tuple[bytes, bytes], count: int) -> int:
        """Delete the first keys of a range, as many as are more than `count`. Returns how many there were too many.

        :raises FleetError: etcd does not answer.
        """
        start, end = range_
        counted = CLASSES["RangeRequest"](key=start, range_end=end, count_only=True)
        surplus = int((await self.connection.read(grpc_methods.RANGE, counted)).count) - count
        if surplus <= 0:
            return 0
        request = CLASSES["RangeRequest"](key=start, range_end=end, limit=surplus, keys_only=True)
        last = (await self.connection.read(grpc_methods.RANGE, request)).kvs[-1].key
        gone = CLASSES["RequestOp"](
            request_delete_range=CLASSES["DeleteRangeRequest"](key=start, range_end=last + b"\0")
        )
        await self.connection.read(grpc_methods.TXN, CLASSES["TxnRequest"](success=[gone]))
        return surplus

    async def commit(self, transaction: Transaction, witness: str) -> int | None:
        """Carry out a transaction. Returns its revision; None where something was not as expected.

        :param witness: a key that it writes and nobody else ever does: by it an unknown outcome is read back.
        :raises FleetUnavailable: nothing was changed, and nothing will be.
        :raises UnknownOutcome: no member answers any more; it may have been carried out.
        :raises FleetError: etcd refuses.
        """
        whole = Transaction({**transaction.expect, witness: 0}, transaction.alive, transaction.write)
        try:
            reply = await self.connection.write(grpc_methods.TXN, whole.message())
        except UnknownOutcome as error:
            return await self._read_back(witness, str(error))
        return int(reply.header.revision) if reply.succeeded else None

    async def _read_back(self, witness: str, why: str) -> int:
        """Find out whether the transaction was carried out; where it was not, it is prevented: it expects that there
        is no witness, and now there is one."""
        request = Transaction({witness: 0}, (), {witness: Put(VOID)}).message()
        request.failure.add(request_range=CLASSES["RangeRequest"](key=witness.encode()))
        try:
            reply = await self.connection.read(grpc_methods.TXN, request)
        except FleetUnavailable as error:
            raise UnknownOutcome(f"{why}; then {error}") from error
        if not reply.succeeded:
            found = item(reply.responses[0].response_range.kvs[0])
            if found.value != VOID:
                return found.revision
        raise FleetUnavailable(
            f"nothing was changed: {why.replace('may have carried it out', 'has not carried it out')}"
        )

    async def write_if(self, transaction: Transaction) -> bool:
        """Carry out a transaction that may safely be carried out twice. False where something was not as expected.

        :raises FleetError: etcd does not answer, or refuses.
        """
        reply = await self.connection.read(grpc_methods.TXN, transaction.message())
        return bool(reply.succeeded)

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Write one key, whatever was there. Returns the revision.

        :raises FleetError: etcd does not answer, or refuses.
        """
        message = Transaction(write={key: Put(value, lease)}).message()
        return int((await self.connection.read(grpc_methods.TXN, message)).header.revision)

    async def compact(self, revision: int) -> None:
        """Forget what was before a revision.

        :raises FleetError: etcd does not answer, or refuses.
        """
        await self.connection.read(grpc_methods.COMPACT, CLASSES["CompactionRequest"](revision=revision))

    async def version(self) -> str:
        """etcd's version.

        :raises FleetError: etcd does not answer.
        """
        return str((await self.connection.read(grpc_methods.STATUS, CLASSES["StatusRequest"]())).version)


def item(found: Any) -> Item:
    """From etcd's message."""
    return Item(found.key.decode(), found.value, found.create_revision, found.mod_revision)


def range_end(prefix: str) -> bytes:
    """The first key after all that begin with `prefix`, whose last character is in ASCII."""
    raw = prefix.encode()
    return raw[:-1] + bytes((raw[-1] + 1,))
