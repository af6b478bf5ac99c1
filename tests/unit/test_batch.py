"""Changes that are carried out together: which may be, and that one of them that is refused leaves the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from spdk_model import ModelSpdk, Refused, part_of_actual

from nvmuser.errors import ConflictError, NvmuserError, RpcServerError, TargetError, UsageError
from nvmuser.model.batch import joined, together
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Pool, TargetSettings, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import site as site_module
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.partial import part_of
from nvmuser.rpc import Client
from nvmuser.store.events import Actor, acting
from nvmuser.supervisor.changes import Changes

MIB = 1 << 20


def null(name: str) -> Volume:
    return Volume(name, "null", size=MIB, volatile=True)


def create(name: str) -> Change:
    return Change(create=(null(name),))


def delete(name: str, *, wipe: bool = False) -> Change:
    return Change(delete=(Key("volume", name),), wipe=wipe)


A, B = null("a"), null("b")
KNOWN = Desired({one.key: Entry(one) for one in (A, B, Controller("c", (Namespace("a", 1),)), Pool("p", base="b"))})


@pytest.mark.parametrize(
    ("waiting", "chosen"),
    [
        ([create("x"), create("y")], [0, 1]),
        ([create("x"), create("x")], [0]),
        ([create("x"), Change(create=(Controller("d", (Namespace("x"),)),))], [0]),
        ([Change(update=(Controller("c"),)), delete("a")], [0]),
        ([delete("a"), Change(update=(Controller("c"),)), create("x")], [0, 2]),
        ([Change(create=(Volume("l", "lvol", size=MIB, pool="p"),)), Change(delete=(Key("pool", "p"),))], [0]),
        ([Change(create=(Volume(n, "lvol", size=MIB, pool="p"),)) for n in "xy"], [0, 1]),
        ([delete("a", wipe=True), delete("b")], [0]),
        ([delete("a", wipe=True), create("x"), delete("b", wipe=True)], [0, 1, 2]),
        ([Change(create=(TargetSettings("t"),)), create("x")], [0]),
        ([create("x"), Change(create=(TargetSettings("t"),)), create("y")], [0, 2]),
        # Somebody far away decides, and takes their time.
        ([Change(create=(Volume("r", "remote", remote="m", remote_nsid=1),)), create("x")], [0]),
        ([create("x"), Change(create=(Volume("i", "rbd", cluster="k", pool_name="p"),)), create("y")], [0, 2]),
        ([create("x"), Change(update=(Volume("r", "remote", remote="m", remote_nsid=1, take_over="0x1"),))], [0]),
        # y waits for x; so what waits for y must not overtake it.
        ([create("x"), Change(update=(null("x"), null("y"))), create("y"), create("z")], [0, 3]),
    ],
)
def test_which_go_together(waiting: list[Change], chosen: list[int]) -> None:
    assert together(KNOWN, waiting) == chosen


def test_what_is_joined_is_all_of_it() -> None:
    whole = joined([create("x"), replace(delete("a", wipe=True), keep_files=True), Change(update=(B,), expect=(B,))])
    assert whole == Change((null("x"),), (B,), (Key("volume", "a"),), wipe=True, expect=(B,), keep_files=True)
    assert joined([create("x")]) == create("x")


class Spdk:
    """A client of the model, which refuses what `refused` names."""

    peer_pid = None

    def __init__(self) -> None:
        self.model = ModelSpdk()
        self.refused = ""
        self.queries = 0

    def post(self, method: str, params: Mapping[str, Any]) -> asyncio.Future[None]:
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            if self.refused and params.get("name") == self.refused:
                raise Refused("no")
            self.model.call(method, params)
            reply.set_result(None)
        except Refused as error:
            reply.set_exception(RpcServerError(method, params, -22, str(error)))
        return reply


@pytest.fixture
def spdk(monkeypatch: pytest.MonkeyPatch) -> Spdk:
    async def query(rpc: Spdk) -> Actual:
        rpc.queries += 1
        return rpc.model.actual

    async def query_part(rpc: Spdk, part: Desired) -> Actual:
        return part_of_actual(rpc.model.actual, part)

    monkeypatch.setattr(site_module, "query", query)
    monkeypatch.setattr(site_module, "query_part", query_part)
    monkeypatch.setattr(site_module, "_FRESH_S", 600.0)  # however slow this machine is
    monkeypatch.setattr("nvmuser.reconcile.engine.query", query)
    return Spdk()


@pytest.fixture
def engine(tmp_path: Path, spdk: Spdk) -> Engine:
    return Engine(StateDir(tmp_path), cast(Client, spdk))


async def test_one_that_is_refused_leaves_the_others(engine: Engine, spdk: Spdk) -> None:
    spdk.refused = "b"
    actors = [Actor(name, "test") for name in "abc"]
    first, second, third = await engine.change_together([create(name) for name in "abc"], actors)
    assert isinstance(first, Outcome)
    assert [one["name"] for one in first.objects] == ["a"]
    assert isinstance(second, TargetError)
    assert "nothing was changed" in str(second)
    assert isinstance(third, Outcome)
    assert [volume.name for volume in engine.desired().volumes()] == ["a", "c"]
    assert sorted(spdk.model.bdevs) == ["a", "c"]


async def test_several_are_one_act(engine: Engine, spdk: Spdk) -> None:
    await engine.change_together([create(f"v{number}") for number in range(20)])
    assert spdk.queries == 2


async def test_what_alone_has_changed_is_looked_at_by_itself(engine: Engine, spdk: Spdk) -> None:
    await engine.change_together([create(f"v{number}") for number in range(3)])
    looked = spdk.queries
    await engine.change(create("one"))
    await engine.change(Change(create=(Controller("c", (Namespace("one"),), volatile=True),)))
    await engine.change(Change(update=(replace(engine.desired().controller("c"), namespaces=()),)))
    await engine.change(delete("one", wipe=True))
    assert spdk.queries == looked
    assert set(spdk.model.bdevs) == {"v0", "v1", "v2"}
    assert Key("volume", "one") not in engine.desired().entries
    assert (await engine.reconcile()).calls == 0


async def test_where_something_is_refused_everything_is_looked_at(engine: Engine, spdk: Spdk) -> None:
    await engine.change(create("a"))
    looked = spdk.queries
    spdk.refused = "b"
    with pytest.raises(TargetError, match="nothing was changed"):
        await engine.change(create("b"))
    assert spdk.queries > looked
    assert sorted(spdk.model.bdevs) == ["a"]


async def test_after_a_while_everything_is_looked_at_again(
    engine: Engine, spdk: Spdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.change(create("a"))
    await engine.change(create("b"))
    del spdk.model.bdevs["a"]
    await engine.change(create("c"))
    assert "a" not in spdk.model.bdevs
    monkeypatch.setattr(site_module, "_FRESH_S", 0.0)
    await engine.change(create("d"))
    assert sorted(spdk.model.bdevs) == ["a", "b", "c", "d"]


async def test_what_is_urgent_is_looked_at_alone_however_long_ago_all_was(
    engine: Engine, spdk: Spdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        await engine.change(create(name))
    monkeypatch.setattr(site_module, "_FRESH_S", 0.0)
    spdk.model.bdevs.clear()
    queries = spdk.queries
    assert (await engine.reconcile(changed=[Key("volume", "b")], urgent=True)).problems == ()
    assert (sorted(spdk.model.bdevs), spdk.queries) == (["b"], queries)
    await engine.reconcile()
    assert sorted(spdk.model.bdevs) == ["a", "b"]


PARTS = Desired(
    {
        one.key: Entry(one)
        for one in (
            A, B, null("m"), null("n"),
            Controller("c", (Namespace("a", 1),)), Pool("p", base="b"),
            Volume("r", "raid1", members=("m", "n"), volatile=True),
            Volume("f", size=MIB, path="/f"), Controller("away", (Namespace("f", 1),), away=True),
        )
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("volume/a", {"volume/a", "controller/c"}),
        ("controller/c", {"volume/a", "controller/c"}),
        ("volume/none", set()),
        ("volume/b", None),
        ("pool/p", None),
        ("volume/m", None),
        ("volume/r", None),
        ("volume/f", None),
    ],
)
def test_what_stands_by_itself(key: str, part: set[str] | None) -> None:
    found = part_of(PARTS, [Key.parse(key)])
    assert (found and set(map(str, found.entries))) == part or (found is not None and part == set())


class Queue:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.turn = asyncio.Lock()
        self.batches: list[int] = []
        self.changes = Changes(engine, self.turn, engine.change, self._done)
        original = engine.change_together

        async def counted(changes: list[Change], actors: list[Actor]) -> list[Outcome | NvmuserError]:
            self.batches.append(len(changes))
            return await original(changes, actors)

        engine.change_together = counted  # type: ignore[method-assign, assignment]

    async def _done(self) -> None:
        pass

    async def all(self, *changes: Change) -> list[Outcome | BaseException]:
        async with self.turn:
            work = [asyncio.ensure_future(self._as(number, change)) for number, change in enumerate(changes)]
            while len(self.changes._queue) < len(changes):  # noqa: ASYNC110 (a list)
                await asyncio.sleep(0)
        return await asyncio.gather(*work, return_exceptions=True)

    async def _as(self, number: int, change: Change) -> Outcome:
        with acting(Actor(f"client {number}")):
            return await self.changes.carry_out(change)


async def test_those_that_wait_are_carried_out_together_each_as_its_own(engine: Engine) -> None:
    queue = Queue(engine)
    await queue.all(*(create(f"v{number}") for number in range(5)))
    assert queue.batches == [5]
    with engine._store as store:
        assert {(event.key.name, event.actor.who) for event in store.events()} == {
            (f"v{number}", f"client {number}") for number in range(5)
        }


async def test_one_that_cannot_be_recorded_does_not_keep_the_others(engine: Engine) -> None:
    await engine.change(create("taken"))
    first, second, third = await Queue(engine).all(create("x"), create("taken"), create("y"))
    assert isinstance(first, Outcome)
    assert isinstance(second, ConflictError)
    assert isinstance(third, Outcome)
    assert [volume.name for volume in engine.desired().volumes()] == ["taken", "x", "y"]


async def test_they_keep_their_order_where_it_matters(engine: Engine) -> None:
    made, shown, gone = await Queue(engine).all(
        create("x"),
        Change(create=(Controller("c", (Namespace("x"),), volatile=True),)),
        delete("x"),
    )
    assert isinstance(made, Outcome)
    assert isinstance(shown, Outcome)
    assert isinstance(gone, ConflictError | UsageError)
    assert "controller c" in str(gone)
