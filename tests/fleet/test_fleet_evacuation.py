"""Hosts that are drained and evicted, and those that die: what goes elsewhere, and what stays."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from fleet_world import ADMIN, FleetHost, Wall, World, on_far, pair, until

from nvmuser.errors import ConflictError, NotFoundError
from nvmuser.fleet import failover, membership
from nvmuser.fleet.etcd.client import Transaction
from nvmuser.fleet.evacuation import Evacuated, check_answers, check_silent, evacuate
from nvmuser.fleet.fences import Fences
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.where import Where


async def hosts(world: World, *names: str) -> list[FleetHost]:
    """Hosts that can take volumes from each other."""
    world.fences = lambda host: Fences(Wall(host))
    found = [await world.join(name) for name in names]
    for host in found:
        host.executor.serves = True
    return found


async def open_at(world: World, volumes: Collection[str], host: str) -> bool:
    async with world.session() as one:
        owners = {owner.volume: (owner.host, owner.state) for owner in (await one.view()).owners.values()}
    return all(owners.get(volume) == (host, "open") for volume in volumes)


async def dies(world: World, number: int, host: str) -> None:
    """All of it at once; its lease ends."""
    world.tasks[number].cancel()
    async with world.session() as one:
        await one.client.write_if(Transaction({}, (), {one.keys.live(host): None}))


async def evacuated(world: World, host: str, *, force: bool) -> Evacuated:
    async with world.session() as one:
        return await evacuate(one, host, ADMIN, force=force)


async def test_a_host_is_drained(world: World) -> None:
    h1, h2, h3 = await hosts(world, "h1", "h2", "h3")
    await world.apply(on_far("a"), "h1")
    await world.apply(Change(create=on_far("b", 2).create[1:]), "h1")
    await world.apply(pair("own"), "h1")
    await until(lambda: open_at(world, ("v-a", "v-b"), "h1"))
    done = await evacuated(world, "h1", force=False)
    assert done.stayed == {Key("controller", "c-own"): "volume v-own: its data is on host h1 alone: it does not move"}
    assert sorted(done.moved.values()) == ["h2", "h3"], "each to where there are fewest"
    assert h1.names == {"volume/v-own", "controller/c-own"}
    assert {"controller/c-a", "controller/c-b"} <= h2.names | h3.names
    assert (await evacuated(world, "h1", force=False)).moved == {}


async def test_what_has_nowhere_to_go_stays(world: World) -> None:
    await hosts(world, "h1", "h2")
    await world.apply(on_far("a"), "h1")
    await until(lambda: open_at(world, ("v-a",), "h1"))
    async with world.session() as one:
        await membership.alter_host(one, "h2", ADMIN, cordoned=True)
        check_answers(await one.view(), "h1")
        with pytest.raises(ConflictError, match="host h1 answers: `nvmuser host drain h1`"):
            check_silent(await one.view(), "h1")
    done = await evacuated(world, "h1", force=False)
    assert done.stayed == {Key("controller", "c-a"): "there is no other host than h1 that lives and is not cordoned"}
    with pytest.raises(NotFoundError, match="host h9: no such host"):
        await evacuated(world, "h9", force=False)


async def test_a_host_is_evicted(world: World) -> None:
    h1, h2 = await hosts(world, "h1", "h2")
    await world.apply(on_far("a"), "h1")
    await world.apply(pair("own"), "h1")
    await until(lambda: open_at(world, ("v-a",), "h1"))
    await dies(world, 0, "h1")
    async with world.session() as one:
        with pytest.raises(ConflictError, match="`nvmuser host evict h1` shuts it out"):
            check_answers(await one.view(), "h1")
    done = await evacuated(world, "h1", force=True)
    assert done.moved == {Key("controller", "c-a"): "h2"}
    assert done.stayed.keys() == {Key("controller", "c-own")}
    assert "controller/c-a" in h2.names
    await world.run(h1)
    await until(lambda: h1.names == {"volume/v-own", "controller/c-own"})


async def test_a_host_dies_and_what_asks_for_it_goes_elsewhere(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "GRACE_S", 0.1)
    h1, h2, h3 = await hosts(world, "h1", "h2", "h3")
    auto = {Key("controller", "c-a"): Where("h1", failover="auto")}
    await world.apply(on_far("a"), "", wheres=auto)
    await world.apply(Change(create=on_far("b", 2).create[1:]), "h1")
    await until(lambda: open_at(world, ("v-a", "v-b"), "h1"))
    await dies(world, 0, "h1")
    async with world.session() as one:  # the arbiter may have been on it
        await one.client.write_if(Transaction({}, (), {one.keys.arbiter: None}))
    await until(lambda: open_at(world, ("v-a",), "h2"), 20)
    assert "controller/c-a" in h2.names
    assert not {"controller/c-b", "volume/v-b"} & (h2.names | h3.names), "it has not asked for it"
    assert h1.names >= {"controller/c-a", "controller/c-b"}


async def test_failover_is_declared_and_kept(world: World) -> None:
    await hosts(world, "h1")
    key = Key("controller", "c-a")

    async def declared() -> str:
        async with world.session() as one:
            return (await one.view()).objects[key].failover

    await world.apply(on_far("a"), "", wheres={key: Where("h1", failover="auto")})
    assert await declared() == "auto"
    await world.apply(Change(delete=(key,)))
    await until(lambda: is_gone(world, key))
    await world.apply(Change(create=on_far("a").create[2:]), "h1")
    assert await declared() == ""
    await world.apply(Change(), wheres={key: Where(failover="auto")})
    assert await declared() == "auto", "also where nothing else changes"
    async with world.session() as one:
        now = (await one.view()).objects[key].object
    await world.apply(Change(update=(now,)))
    assert await declared() == "auto", "who says nothing changes nothing"
    await world.apply(Change(), wheres={key: Where(failover="off")})
    assert await declared() == ""


async def is_gone(world: World, key: Key) -> bool:
    async with world.session() as one:
        return key not in (await one.view()).objects
