"""The client of etcd, on a real one: transactions, listings, leases, what becomes of them when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from etcd_server import Etcd, free_ports, running

from nvmuser.errors import FleetError, FleetUnavailable, UnknownOutcome
from nvmuser.fleet.etcd import client as client_module
from nvmuser.fleet.etcd import connection as connection_module
from nvmuser.fleet.etcd import lease
from nvmuser.fleet.etcd.client import Client, Listing, Put, Transaction
from nvmuser.fleet.etcd.connection import Connection, Method
from nvmuser.fleet.etcd.watch import Changes, Lost, Watcher
from nvmuser.fleet.keys import prefix


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with running(tmp_path_factory.mktemp("etcd")) as member:
        yield member


@pytest.fixture
async def client(etcd: Etcd) -> AsyncIterator[Client]:
    async with Connection([etcd.url]) as connection:
        yield Client(connection)


async def test_a_transaction_is_carried_out_once_and_only_as_expected(client: Client) -> None:
    made = await client.commit(Transaction({"t/a": 0}, (), {"t/a": Put(b"1"), "t/w1": Put(b"x")}), "t/w1")
    found = await client.get("t/a")
    assert found
    assert (found.value, found.revision, found.created) == (b"1", made, made)
    assert await client.commit(Transaction({"t/a": 0}, (), {"t/a": Put(b"2"), "t/w2": Put(b"x")}), "t/w2") is None
    assert (await client.get("t/w2")) is None
    assert made
    second = Transaction({"t/a": made}, ("t/a",), {"t/a": None, "t/w3": Put(b"x")})
    assert await client.commit(second, "t/w3")
    assert await client.get("t/a") is None
    assert await client.commit(Transaction({}, ("t/a",), {"t/w4": Put(b"x")}), "t/w4") is None
    old = await client.get("t/a", made)
    assert old
    assert old.value == b"1"


async def test_a_listing_of_many_pages_is_of_one_revision(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAGE", 7)
    for number in range(20):
        await client.put(f"pages/{number:02}", b"%d" % number)
    await client.put("pages0", b"not in it")
    listing = await client.listing(prefix("pages/"))
    assert [found.value for found in listing.items.values()] == [b"%d" % number for number in range(20)]
    assert listing.cluster
    assert [found.key for found in await client.last(prefix("pages/"), 2)] == ["pages/18", "pages/19"]


async def test_a_refusal_is_one_line(client: Client) -> None:
    many = {f"many/{number}": Put(b"") for number in range(200)}
    with pytest.raises(FleetError, match=r"etcd refuses: .*too many operations"):
        await client.commit(Transaction({}, (), many), "many/0")
    with pytest.raises(FleetError, match=r"etcd refuses: .*future revision"):
        await client.get("t/a", 1 << 40)


async def test_one_of_two_members_is_dead(etcd: Etcd) -> None:
    [nobody] = free_ports(1)
    async with Connection([f"http://127.0.0.1:{nobody}", etcd.url]) as connection:
        client = Client(connection)
        assert await client.version()
        assert await client.commit(Transaction({}, (), {"two/w": Put(b"x")}), "two/w")


async def test_no_member_answers(etcd: Etcd) -> None:
    ports = free_ports(2)
    async with Connection([f"http://127.0.0.1:{port}" for port in ports], deadline=0.3) as connection:
        with pytest.raises(FleetUnavailable, match=f"127.0.0.1:{ports[0]}: .*refused.*127.0.0.1:{ports[1]}"):
            await Client(connection).get("a")


class Deaf(Connection):
    """Sends a transaction, or does not, and then does not know what became of it."""

    sends = True

    async def write(self, method: Method, request: object) -> object:
        if self.sends:
            await super().write(method, request)
        self.late = request
        raise UnknownOutcome("etcd may have carried it out: a test")


async def test_an_unknown_outcome_is_read_back(etcd: Etcd) -> None:
    async with Deaf([etcd.url]) as connection:
        client = Client(connection)
        transaction = Transaction({"u/a": 0}, (), {"u/a": Put(b"1"), "u/w": Put(b"x")})
        revision = await client.commit(transaction, "u/w")
        found = await client.get("u/a")
        assert found
        assert found.revision == revision


async def test_a_transaction_that_was_not_carried_out_never_is(etcd: Etcd) -> None:
    """It may be on its way still: it must find that it has been given up."""
    async with Deaf([etcd.url]) as connection:
        connection.sends = False
        client = Client(connection)
        with pytest.raises(FleetUnavailable, match="nothing was changed"):
            await client.commit(Transaction({}, (), {"late/a": Put(b"1"), "late/w": Put(b"x")}), "late/w")
        reply = await connection.read(connection_module.TXN, connection.late)
        assert not reply.succeeded
        assert await client.get("late/a") is None


async def test_nobody_can_be_asked_what_became_of_it(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Deaf([etcd.url]) as connection:

        async def read(*_: object) -> object:
            raise FleetUnavailable("away")

        monkeypatch.setattr(connection, "read", read)
        with pytest.raises(UnknownOutcome, match="may have"):
            await Client(connection).commit(Transaction({}, (), {"n/w": Put(b"x")}), "n/w")


async def test_a_key_with_a_lease_goes_with_it(client: Client) -> None:
    granted: asyncio.Queue[int] = asyncio.Queue()

    async def write(number: int) -> None:
        await client.put("lease/a", b"1", number)
        granted.put_nowait(number)

    keeping = asyncio.create_task(lease.keep(client, 2, write))
    try:
        first = await granted.get()
        assert await client.get("lease/a")
        await lease.revoke(client, first)
        assert await client.get("lease/a") is None
        assert await granted.get() != first, "a lease that was lost is granted anew"
        assert await client.get("lease/a")
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def test_a_watch_sees_every_change_also_across_a_kill(tmp_path: Path) -> None:
    with running(tmp_path) as etcd:
        async with Connection([etcd.url]) as watching, Connection([etcd.url]) as writing:
            client, seen = Client(writing), Watcher(Client(watching), prefix("w/")).events()
            await client.put("w/0", b"0")
            first = await anext(seen)
            assert isinstance(first, Listing)
            assert list(first.items) == ["w/0"]
            await client.put("w/1", b"1")
            assert await _changed(seen) == {"w/1": b"1"}
            etcd.kill()
            etcd.start()
            await client.put("w/2", b"2")
            await client.commit(Transaction({}, (), {"w/2": None, "w/3": Put(b"3")}), "w/3")
            found: dict[str, bytes | None] = {}
            while "w/3" not in found:
                found |= await _changed(seen)
            assert found == {"w/2": None, "w/3": b"3"}
            await seen.aclose()


async def test_a_watch_whose_changes_were_compacted_lists_anew(tmp_path: Path) -> None:
    with running(tmp_path) as etcd:
        async with Connection([etcd.url]) as watching, Connection([etcd.url]) as writing:
            client, watcher = Client(writing), Watcher(Client(watching), prefix("w/"))
            await client.put("w/0", b"0")
            seen = watcher.events()
            assert isinstance(await anext(seen), Listing)
            await seen.aclose()
            for number in range(3):
                revision = await client.put("w/0", b"%d" % number)
            await client.compact(revision)
            seen = watcher.events()
            again = await anext(seen)
            assert isinstance(again, Listing)
            assert again.items["w/0"].value == b"2"
            await seen.aclose()


async def test_a_watch_of_an_etcd_that_lost_its_data_lists_anew(tmp_path: Path) -> None:
    """It would wait for revisions that are long in coming."""
    with running(tmp_path) as etcd:
        async with Connection([etcd.url]) as watching, Connection([etcd.url]) as writing:
            client, seen = Client(writing), Watcher(Client(watching), prefix("w/")).events()
            for number in range(5):
                await client.put("w/0", b"%d" % number)
            before = await anext(seen)
            assert isinstance(before, Listing)
            etcd.kill()
            etcd.lose_data()
            etcd.start()
            event = await anext(seen)
            while isinstance(event, Lost):
                event = await anext(seen)
            assert isinstance(event, Listing)
            assert event.items == {}
            assert event.revision < before.revision
            await seen.aclose()


async def _changed(seen: AsyncIterator[Listing | Changes | Lost]) -> dict[str, bytes | None]:
    event = await anext(seen)
    while isinstance(event, Lost):
        event = await anext(seen)
    assert isinstance(event, Changes)
    return {key: one.value if one else None for key, one in event.items.items()}


async def test_a_frozen_member_does_not_hold_a_change(tmp_path: Path) -> None:
    with running(tmp_path) as etcd:
        async with Connection([etcd.url]) as patient, Connection([etcd.url], deadline=0.5) as connection:
            await Client(patient).put("f/a", b"1")
            etcd.freeze()
            try:
                with pytest.raises(FleetUnavailable, match="connects, and does not answer"):
                    await Client(connection).get("f/a")
            finally:
                etcd.freeze(False)
            assert await Client(patient).get("f/a")
