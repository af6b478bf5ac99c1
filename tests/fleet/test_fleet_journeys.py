"""What a guest on its way takes along from host to host, and what is left when it does not arrive. Without guests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet_world import ADMIN, FleetHost, Wall, World, on_far, until

from nvmuser.errors import ConflictError, NotFoundError
from nvmuser.fleet import visit
from nvmuser.fleet.fences import Fences
from nvmuser.fleet.journey import DONE, FAILED, LEFT, READY, RELEASED, Journey
from nvmuser.fleet.move import move
from nvmuser.fleet.records import Owner
from nvmuser.fleet.session import Session
from nvmuser.fleet.travel import Log, Written, begin
from nvmuser.model.change import Change

BOX = Journey("h1", "h2", ("c-a",))


async def owner(one: Session) -> Owner:
    return next(iter((await one.view()).owners.values()))


async def prepared(world: World, *others: str) -> dict[str, FleetHost]:
    """Hosts, of which the first has a controller on what all reach."""
    walls = {name: Wall(name) for name in ("h1", "h2", *others)}
    world.fences = lambda host: Fences(walls[host])
    hosts = {name: await world.join(name) for name in walls}
    await world.apply(on_far("a"), "h1")
    async with world.session() as one:
        await until(lambda: is_open(one))
    for host in hosts.values():
        host.executor.serves = True
    return hosts


async def is_open(one: Session) -> bool:
    return (await owner(one)).state == "open"


async def expected(world: World, one: Session, log: Log, there: FleetHost) -> Written:
    """The destination has all that it needs, closed."""
    now = await log.read()
    assert now
    ready = replace(now.journey, state=READY, guest="box")
    await log.write(now, ready)
    local = there.executor.desired()
    change = await visit.expect(one, ready, world.fences(there.settings.host), local)
    await there.executor.engine.change(change)
    found = await log.read()
    assert found
    return found


def has(host: FleetHost) -> set[str]:
    return {name for name in host.names if not name.startswith("remote/")}


async def settled(host: FleetHost, one: Session) -> None:
    """A host has seen everything that is in etcd now."""
    revision = (await one.view()).revision
    await until(lambda: host.agent.revisions[0] >= revision)


async def test_it_arrives(world: World) -> None:
    hosts = await prepared(world)
    h1, h2 = hosts["h1"], hosts["h2"]
    before = h1.executor.desired().controller("c-a")
    async with world.session() as one:
        log = await begin(one, BOX, ADMIN)
        now = await expected(world, one, log, h2)
        assert {fence["host"] for fence in (await owner(one)).fences} == {"h1", "h2"}, "both may have it open"
        assert h2.executor.desired().controller("c-a") == replace(before, away=True), "closed, with its identity"
        with pytest.raises(ConflictError, match="its guest is on its way to host h2"):
            await begin(one, BOX, ADMIN)
        with pytest.raises(ConflictError, match="its guest is on its way to host h2"):
            await move(one, "c-a", "h2", ADMIN)
        await world.apply(Change(create=on_far("b", 2).create[1:]), "h2")  # something else meanwhile
        assert has(h2) == {"controller/c-a", "volume/v-a", "controller/c-b", "volume/v-b"}, "what is expected stays"
        left = replace(now.journey, state=LEFT)
        await log.write(now, left)
        gone = await log.read()
        assert gone
        await visit.settle(one, log, gone, left)
        found = next(o for o in (await one.view()).owners.values() if o.volume == "v-a")
        assert (found.host, found.epoch, found.state) == ("h2", 2, "open")
        assert [fence["host"] for fence in found.fences] == ["h2"]
        await until(lambda: has(h1) == set())
        assert has(h2) >= {"controller/c-a", "volume/v-a"}


async def test_it_does_not_arrive(world: World) -> None:
    hosts = await prepared(world)
    h1, h2 = hosts["h1"], hosts["h2"]
    async with world.session() as one:
        log = await begin(one, BOX, ADMIN)
        now = await expected(world, one, log, h2)
        assert has(h2)
        await visit.give_up(one, log, now, "no room")
        found = await log.read()
        assert found
        assert (found.journey.state, found.journey.reason) == (RELEASED, "no room")
        await until(lambda: has(h2) == set())
        assert has(h1) == {"controller/c-a", "volume/v-a"}
        assert [fence["host"] for fence in (await owner(one)).fences] == ["h1"]
        with pytest.raises(ConflictError, match="its guest is on its way"):
            await begin(one, BOX, ADMIN)  # the source has not yet seen that it goes on
        await log.write(found, replace(found.journey, state=FAILED))
        await begin(one, BOX, ADMIN)


async def test_its_volumes_are_taken_by_force_meanwhile(world: World) -> None:
    """As when the source has lost its power: whoever takes them shuts both out, and it cannot arrive any more."""
    hosts = await prepared(world, "h3")
    async with world.session() as one:
        log = await begin(one, BOX, ADMIN)
        now = await expected(world, one, log, hosts["h2"])
        await settled(hosts["h3"], one)
        await move(one, "c-a", "h3", ADMIN, force=True)
        with pytest.raises(ConflictError, match="was taken from host h1 meanwhile"):
            await visit.settle(one, log, now, now.journey)
        assert (await owner(one)).host == "h3"


async def test_what_cannot_go(world: World) -> None:
    hosts = await prepared(world)
    async with world.session() as one:
        view = await one.view()
        with pytest.raises(NotFoundError, match="host h9: no such host"):
            await begin(one, replace(BOX, to="h9"), ADMIN)
        with pytest.raises(NotFoundError, match="controller c-x: no such controller"):
            visit.baggage(view, replace(BOX, controllers=("c-x",)))
        with pytest.raises(ConflictError, match="controller c-a: is on host h1, not on h2"):
            visit.baggage(view, Journey("h2", "h1", ("c-a",)))
    assert has(hosts["h1"])
    assert BOX.side("h1") == "source"
    assert replace(BOX, state=DONE).side("h1") == ""
