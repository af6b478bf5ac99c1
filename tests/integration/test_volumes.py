"""Volumes of every backend on the real target: their sizes, what is refused, what is undone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from bare_target import BareTarget

from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.actual import query
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.space import pools
from nvmuser.rpc import Client

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
async def engine(tmp_path: Path, spdk_target: BareTarget) -> AsyncIterator[Engine]:
    async with await Client.connect(spdk_target.rpc_socket) as rpc:
        engine = Engine(StateDir(tmp_path / "st"), rpc)
        yield engine
        engine.close()


async def size_in_spdk(engine: Engine, bdev: str) -> int:
    assert engine.rpc
    (found,) = await engine.rpc.call("bdev_get_bdevs", {"name": bdev})
    return int(found["num_blocks"] * found["block_size"])


async def agrees(engine: Engine) -> None:
    outcome = await engine.reconcile()
    assert (outcome.calls, outcome.problems) == (0, ())


def made(outcome: object, name: str) -> Volume:
    objects = outcome.objects  # type: ignore[attr-defined]
    return Volume.from_json(next(one for one in objects if one["name"] == name))


@pytest.mark.parametrize(
    ("cluster_size", "asked", "size"),
    [(64 * KIB, 1600 * KIB, 2 * MIB), (64 * KIB, 512 * KIB, MIB), (4 * MIB, 5 * MIB, 8 * MIB)],
)
async def test_a_volume_in_a_pool_is_never_smaller_than_asked(
    engine: Engine, cluster_size: int, asked: int, size: int
) -> None:
    create = (
        Volume("disk", size=256 * MIB),
        Pool("p", base="disk", cluster_size=cluster_size),
        Volume("thick", "lvol", pool="p", size=asked),
        Volume("thin", "lvol", pool="p", size=asked, thin=True),
        Volume("null", "null", size=asked, volatile=True),
    )
    outcome = await engine.change(Change(create=create))
    assert outcome.problems == ()
    await agrees(engine)
    for name in ("thick", "thin"):
        assert made(outcome, name).size == await size_in_spdk(engine, f"p/{name}") == size
    assert made(outcome, "null").size == await size_in_spdk(engine, "null") >= asked
    grown = await engine.change(
        Change(update=tuple(replace(made(outcome, name), size=size + KIB) for name in ("thick", "thin", "null")))
    )
    await agrees(engine)
    for name, bdev in (("thick", "p/thick"), ("thin", "p/thin"), ("null", "null")):
        assert made(grown, name).size == await size_in_spdk(engine, bdev) >= size + KIB


async def test_snapshots_and_clones_have_sizes_that_spdk_agrees_with(engine: Engine) -> None:
    create = (
        Volume("clone", "lvol", pool="p", clone_of="snap", size=6 * MIB),
        Volume("snap", "lvol", pool="p", snapshot_of="a"),
        Volume("a", "lvol", pool="p", size=3 * MIB),
        Volume("disk", size=256 * MIB),
        Pool("p", base="disk", cluster_size=MIB),
    )
    outcome = await engine.change(Change(create=create))
    assert outcome.problems == ()
    await agrees(engine)
    for name, size in (("a", 3), ("snap", 3), ("clone", 6)):
        assert made(outcome, name).size == await size_in_spdk(engine, f"p/{name}") == size * MIB


async def test_what_a_pool_has_and_has_promised(engine: Engine) -> None:
    create = (
        Volume("disk", size=64 * MIB),
        Pool("p", base="disk", cluster_size=MIB),
        Volume("thick", "lvol", pool="p", size=20 * MIB),
        Volume("thin", "lvol", pool="p", size=100 * MIB, thin=True),
    )
    assert (await engine.change(Change(create=create))).problems == ()
    assert engine.rpc
    desired = engine._store.load()
    space = pools(desired, await query(engine.rpc))["p"]
    assert space.total - 20 * MIB == space.free
    assert (space.promised, space.short) == (100 * MIB, True)
    assert (await engine.status()).space == (str(space),)
    await engine.change(Change(delete=(Key("volume", "thin"),), wipe=True))
    assert (await engine.status()).space == ()


async def test_names_of_63_characters(engine: Engine) -> None:
    disk, pool, inside = "d" * 63, "p" * 63, "v" * 63
    mirror = tuple(Volume(f"m{n}", size=16 * MIB) for n in range(2))
    create = (
        Volume(disk, size=64 * MIB),
        Pool(pool, base=disk, cluster_size=MIB),
        Volume(inside, "lvol", pool=pool, size=MIB),
        Volume("s" * 63, "lvol", pool=pool, snapshot_of=inside),
        *mirror,
        Volume("r" * 63, "raid1", members=("m0", "m1")),
    )
    assert (await engine.change(Change(create=create))).problems == ()
    await agrees(engine)
