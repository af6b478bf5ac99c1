"""Tenants of a fleet: their names, and what each may declare at most."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fleet_world import ADMIN, World, disk

from nvmuser.errors import ConflictError, NotFoundError, NvmuserError
from nvmuser.fleet import tenants
from nvmuser.fleet.quotas import usage
from nvmuser.fleet.records import Quota
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Limits, Volume

MIB = 1 << 20


async def allow(world: World, **fields: int) -> Quota:
    async with world.session() as one:
        return await tenants.allow(one, "acme", ADMIN, **fields)


async def used(world: World) -> Quota:
    async with world.session() as one:
        return usage(await one.view(), "acme")


def limited(name: str, iops: int) -> Volume:
    return replace(disk(name), limits=Limits(iops=iops))


async def test_a_tenant_has_names_and_limits(world: World) -> None:
    await world.join("h1", run=False)
    assert await allow(world, volumes=2) == Quota(volumes=2)
    assert await allow(world, bytes=3 * MIB) == Quota(volumes=2, bytes=3 * MIB), "what is not named stays"
    await world.apply(Change(create=(disk("acme.a", 2 * MIB), disk("others", 9 * MIB))), "h1")
    with pytest.raises(ConflictError, match=r"tenant acme: 4M bytes would be more than its 3M"):
        await world.apply(Change(create=(disk("acme.b", 2 * MIB),)), "h1")
    await world.apply(Change(create=(disk("acme.b"),)), "h1")
    with pytest.raises(ConflictError, match="tenant acme: 3 volumes would be more than its 2"):
        await world.apply(Change(create=(disk("acme.c", 512),)), "h1")
    assert await used(world) == Quota(2, 3 * MIB)
    async with world.session() as one:
        a = (await one.view()).objects[Key("volume", "acme.a")].object
    assert isinstance(a, Volume)
    with pytest.raises(ConflictError, match="more than its 3M"):
        await world.apply(Change(update=(replace(a, size=3 * MIB),)))
    await allow(world, volumes=1)
    await world.apply(Change(delete=(Key("volume", "acme.a"),), wipe=True))
    assert (await used(world)).volumes == 1
    async with world.session() as one:
        await tenants.forget(one, "acme", ADMIN)
        with pytest.raises(NotFoundError, match="tenant acme: no such tenant"):
            await tenants.forget(one, "acme", ADMIN)
    await world.apply(Change(create=(disk("acme.d"),)), "h1")


async def test_what_is_promised_is_counted(world: World) -> None:
    await world.join("h1", run=False)
    await allow(world, iops=5000)
    with pytest.raises(ConflictError, match=r"volume acme.a: tenant acme may promise 5000 IOPS in all"):
        await world.apply(Change(create=(disk("acme.a"),)), "h1")
    await world.apply(Change(create=(limited("acme.a", 3000),)), "h1")
    with pytest.raises(ConflictError, match="tenant acme: 6000 iops would be more than its 5000"):
        await world.apply(Change(create=(limited("acme.b", 3000),)), "h1")
    await world.apply(Change(create=(limited("acme.b", 2000),)), "h1")


async def test_two_at_once_do_not_pass_a_limit_together(world: World) -> None:
    await world.join("h1", run=False)
    await allow(world, volumes=3)

    async def declare(number: int) -> bool:
        try:
            await world.apply(Change(create=(disk(f"acme.{number}"),)), "h1")
        except NvmuserError:
            return False
        return True

    done = await asyncio.gather(*map(declare, range(12)))
    assert 1 <= sum(done) <= 3
    assert (await used(world)).volumes == sum(done)


async def test_a_large_change_is_counted_too(world: World) -> None:
    await world.join("h1", run=False)
    await allow(world, volumes=60)
    many = tuple(disk(f"acme.{number}") for number in range(60))
    with pytest.raises(ConflictError, match="61 volumes would be more than its 60"):
        await world.apply(Change(create=(*many, disk("acme.x"))), "h1")
    await world.apply(Change(create=many), "h1")
    assert (await used(world)).volumes == 60
