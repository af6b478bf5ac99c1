"""Controllers that go from host to host: who owns their volumes, and what does not move."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fleet_world import ADMIN, FAR, Wall, World, on_far, pair, until

from nvmuser.errors import ConflictError, NotFoundError, StaleError, TargetError
from nvmuser.fleet import agent
from nvmuser.fleet.etcd.client import Client, Transaction
from nvmuser.fleet.fences import Fences
from nvmuser.fleet.move import move
from nvmuser.fleet.ownership import Ownership
from nvmuser.fleet.records import Owner
from nvmuser.fleet.view import View
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.outcome import Outcome


async def owners(world: World) -> dict[str, Owner]:
    async with world.session() as one:
        return {owner.volume: owner for owner in (await one.view()).owners.values()}


async def moved(world: World, name: str, to: str, *, force: bool = False) -> None:
    async with world.session() as one:
        await move(one, name, to, ADMIN, force=force)


async def test_a_planned_move(world: World) -> None:
    h1, h2 = await world.join("h1"), await world.join("h2")
    await world.apply(on_far("a"), "h1")
    await until(lambda: is_open(world, "v-a"))
    assert (await owners(world))["v-a"] == Owner("v-a", "h1", 1, "open")
    before = h1.executor.desired().controller("c-a")
    await moved(world, "c-a", "h2")
    assert h1.names == set()
    assert h2.names == {"remote/far", "volume/v-a", "controller/c-a"}
    assert h2.executor.desired().controller("c-a") == before, "with the same identities"
    await until(lambda: is_open(world, "v-a"))
    assert (await owners(world))["v-a"] == Owner("v-a", "h2", 2, "open")
    await world.apply(Change(delete=(Key("controller", "c-a"), Key("volume", "v-a"))))
    await until(lambda: is_empty(world))
    assert await owners(world) == {}


async def is_empty(world: World) -> bool:
    async with world.session() as one:
        return (await one.view()).objects.keys() == {FAR.key}


async def is_open(world: World, volume: str) -> bool:
    return (await owners(world))[volume].state == "open"


async def test_a_record_that_changes_under_a_forced_move(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its owner has written its fences at the same time: the move goes on by what there is then."""
    walls = {name: Wall(name) for name in ("h1", "h2")}
    world.fences = lambda host: Fences(walls[host])
    _, h2 = [await world.join(name) for name in walls]
    h2.executor.serves = True
    await world.apply(on_far("a"), "h1")
    await until(lambda: is_open(world, "v-a"))
    world.tasks[0].cancel()
    async with world.session() as one:
        await one.client.write_if(_gone(one.keys.live("h1")))
    candidate, tried = Ownership.candidate, list[str]()

    async def late(self: Ownership, client: Client, view: View, volume: Volume) -> None:
        tried.append(volume.name)
        if len(tried) == 1:
            raise StaleError("its owner has just changed; look again")
        await candidate(self, client, view, volume)

    monkeypatch.setattr(Ownership, "candidate", late)
    await moved(world, "c-a", "h2", force=True)
    assert len(tried) == 2
    assert (await owners(world))["v-a"].host == "h2"


async def test_a_move_that_the_host_refuses_leaves_everything(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a guest is connected."""
    h1, h2 = await world.join("h1"), await world.join("h2")
    await world.apply(on_far("a"), "h1")
    await until(lambda: is_open(world, "v-a"))
    before, change = h1.executor.desired(), h1.executor.change

    async def refuse(one: Change) -> Outcome:
        if one.delete:
            raise ConflictError("controller c-a: a guest is connected")
        return await change(one)

    monkeypatch.setattr(h1.executor, "change", refuse)
    with pytest.raises(TargetError, match=r"a guest is connected \(host h1\).*nothing was moved"):
        await moved(world, "c-a", "h2")
    assert (h1.executor.desired(), h2.names) == (before, set())
    assert (await owners(world))["v-a"] == Owner("v-a", "h1", 1, "open")
    async with world.session() as one:
        assert {record.host for record in (await one.view()).objects.values()} == {"h1", ""}


async def test_what_is_on_one_host_alone_stays(world: World) -> None:
    await world.join("h1", run=False)
    await world.join("h2", run=False)
    await world.apply(pair("a"), "h1")
    with pytest.raises(ConflictError, match="volume v-a: its data is on host h1 alone: it does not move"):
        await moved(world, "c-a", "h2")
    with pytest.raises(NotFoundError, match="host h3: no such host"):
        await moved(world, "c-a", "h3")
    with pytest.raises(NotFoundError, match="controller c-b: no such controller"):
        await moved(world, "c-b", "h2")
    assert await owners(world) == {}


async def test_a_volume_is_not_opened_while_another_host_may_have_it_open(world: World) -> None:
    h1 = await world.join("h1")
    h2 = await world.join("h2")
    await world.apply(on_far("a"), "h1")
    await until(lambda: is_open(world, "v-a"))
    world.tasks[0].cancel()  # its supervisor is killed; its target may serve on
    async with world.session() as one:
        await one.client.write_if(_gone(one.keys.live("h1")))
    with pytest.raises(ConflictError, match=r"host h1 does not answer.*--force"):
        await moved(world, "c-a", "h2")
    with pytest.raises(ConflictError, match="cannot be shut out: its storage has no fence"):
        await moved(world, "c-a", "h2", force=True)
    assert h1.names >= {"volume/v-a"}
    assert h2.names == set()
    assert (await owners(world))["v-a"].host == "h1"


def _gone(key: str) -> Transaction:
    return Transaction({}, (), {key: None})


async def test_a_forced_move_fences_first(world: World) -> None:
    walls = {host: Wall(host) for host in ("h1", "h2")}
    world.fences = lambda host: Fences(walls[host])
    h1, h2 = await world.join("h1"), await world.join("h2")
    await world.apply(on_far("a"), "h1")
    await until(lambda: is_open(world, "v-a"))
    assert (await owners(world))["v-a"].fences == ({"kind": "wall", "host": "h1", "key": "h1 in v-a"},)
    world.tasks[0].cancel()
    async with world.session() as one:
        await one.client.write_if(_gone(one.keys.live("h1")))
    walls["h2"].fails = "the wall does not answer"
    with pytest.raises(TargetError, match=r"the wall does not answer \(host h2\); nothing was moved"):
        await moved(world, "c-a", "h2", force=True)
    assert (h2.names, (await owners(world))["v-a"].host) == (set(), "h1"), "nothing moves without it"
    walls["h2"].fails = ""
    with pytest.raises(TargetError, match="no target runs on the host that is to take it"):
        await moved(world, "c-a", "h2", force=True)
    h2.executor.serves = True
    await moved(world, "c-a", "h2", force=True)
    assert walls["h2"].confirmed[-2:] == ["h1 in v-a", "h2 in v-a"], "who tried and failed may have it open, too"
    assert h2.names == {"remote/far", "volume/v-a", "controller/c-a"}
    owner = (await owners(world))["v-a"]
    assert (owner.host, owner.epoch) == ("h2", 2)
    await world.run(h1)  # the fenced host wakes: it finds that it is not the owner, and closes
    await until(lambda: h1.names == set())
    assert (await owners(world))["v-a"].host == "h2"


@pytest.mark.parametrize("force", [False, True])
async def test_what_went_and_came_back_while_a_host_did_not_look(world: World, force: bool) -> None:
    """The storage has shut it out of what it has open since: that is closed, and opened again."""
    walls = {host: Wall(host) for host in ("h1", "h2")}
    world.fences = lambda host: Fences(walls[host])
    h1, h2 = await world.join("h1"), await world.join("h2")
    h1.executor.serves = h2.executor.serves = True
    await world.apply(on_far("a"), "h1")
    await until(lambda: is_open(world, "v-a"))
    world.tasks[0].cancel()
    async with world.session() as one:
        await one.client.write_if(_gone(one.keys.live("h1")))
    await moved(world, "c-a", "h2", force=True)
    h1.executor.changes.clear()
    await moved(world, "c-a", "h1", force=force)  # when it is back
    await world.run(h1)
    await until(lambda: has_come(world, "v-a", "h1"))
    closed = next(one for one in h1.executor.changes if one.delete)
    later = h1.executor.changes[h1.executor.changes.index(closed) + 1 :]
    assert set(closed.delete) == {Key("controller", "c-a"), Key("volume", "v-a")}
    assert {one.key for change in later for one in change.create} >= set(closed.delete)
    assert (await owners(world))["v-a"].epoch == 3
    assert h2.names == set()


@pytest.mark.matrix
async def test_a_target_that_starts_closes_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not closed yet is given up when it has."""
    monkeypatch.setattr(agent, "_AGAIN_S", 0.1)
    h1, _ = await world.join("h1"), await world.join("h2")
    await world.apply(on_far("a"), "h1")
    await until(lambda: is_open(world, "v-a"))
    change, desired, waiting = h1.executor.change, h1.executor.desired, list[Change]()

    async def later(one: Change) -> Outcome:
        if not one.delete:
            return await change(one)
        waiting.append(one)
        return Outcome(pending=True)

    def closing() -> Desired:
        gone = {key for one in waiting for key in one.delete}
        found = desired().entries.items()
        return Desired({key: replace(one, deleting=one.deleting or key in gone) for key, one in found})

    monkeypatch.setattr(h1.executor, "change", later)
    monkeypatch.setattr(h1.executor, "desired", closing)
    moving = asyncio.create_task(moved(world, "c-a", "h2"))
    await until(lambda: waiting and h1.agent.revisions[0] == h1.agent.revisions[1])
    await change(waiting.pop())
    async with asyncio.timeout(20):
        await moving
    assert (await owners(world))["v-a"].host == "h2"


async def has_come(world: World, volume: str, host: str) -> bool:
    owner = (await owners(world))[volume]
    return (owner.host, owner.state) == (host, "open")
