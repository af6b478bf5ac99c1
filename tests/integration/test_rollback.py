"""A volume in a pool made what one of its snapshots is; in Ceph: test_rbd.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from bare_target import BareTarget

from nvmuser import initiator
from nvmuser.errors import ConflictError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.rollback import roll_back
from nvmuser.rpc import Client, methods

MIB = 1 << 20
DB = Key("volume", "db")
SHOWN = Controller("x", (Namespace("db"),))


@pytest.fixture
async def engine(tmp_path: Path, spdk_target: BareTarget) -> AsyncIterator[Engine]:
    async with await Client.connect(spdk_target.rpc_socket) as rpc:
        engine = Engine(StateDir(tmp_path / "st"), rpc)
        pool = (Volume("disk", size=64 * MIB), Pool("p", base="disk", cluster_size=MIB))
        assert (
            await engine.change(Change(create=(*pool, Volume("db", "lvol", pool="p", size=4 * MIB))))
        ).problems == ()
        yield engine
        engine.close()


async def change(engine: Engine, **what: object) -> None:
    outcome = await engine.change(Change(wipe=True, **what))  # type: ignore[arg-type]
    assert outcome.problems == ()


async def through_a_host(engine: Engine, state: Path, data: bytes = b"") -> bytes:
    """What the volume begins with, after writing that; a controller shows it for as long."""
    await change(engine, create=(SHOWN,))

    def act() -> bytes:
        found = bytearray(512)
        with initiator.connect(StateDir(state).target_dir("x")) as host, host.queue(4, timeout=30) as queue:
            if data:
                queue.write(host.namespace(1), 0, data).wait()
            queue.read(host.namespace(1), 0, found).wait()
        return bytes(found)

    found = await asyncio.to_thread(act)
    await change(engine, delete=(SHOWN.key,))
    return found


async def test_to_one_of_several_and_back_as_often_as_one_likes(engine: Engine, tmp_path: Path) -> None:
    state, contents = tmp_path / "st", {name: bytes([number]) * 512 for number, name in enumerate(("a", "b"), 1)}
    for name, data in contents.items():
        await through_a_host(engine, state, data)
        await change(engine, create=(Volume(name, "lvol", pool="p", snapshot_of="db"),))
    await through_a_host(engine, state, b"\xff" * 512)
    db = engine.desired().get(DB)
    assert isinstance(db, Volume)
    await change(engine, update=(replace(db, size=6 * MIB),))
    for name in ("a", "b", "b", "a"):
        outcome = await roll_back(engine, DB, Key("volume", name), wipe=True)
        assert outcome.problems == ()
        assert await through_a_host(engine, state) == contents[name]
        assert (await engine.reconcile()).calls == 0
    assert engine.rpc
    (found,) = await engine.rpc.call("bdev_get_bdevs", {"name": "p/db"})
    assert found["num_blocks"] * 512 == 6 * MIB
    await change(engine, delete=(DB, Key("volume", "b"), Key("volume", "a")))


@pytest.mark.parametrize("deleted", [False, True])
async def test_one_that_was_interrupted_is_done_again(engine: Engine, tmp_path: Path, deleted: bool) -> None:
    """Before the volume was deleted, and after that."""
    state = tmp_path / "st"
    await through_a_host(engine, state, b"\x01" * 512)
    await change(engine, create=(Volume("a", "lvol", pool="p", snapshot_of="db"),))
    await through_a_host(engine, state, b"\x02" * 512)
    (db,) = [one for one in engine.desired().volumes() if one.name == "db"]
    assert engine.rpc
    left = [methods.lvol_clone("p/a", f"rollback-{db.uuid}"), *([methods.lvol_delete("p/db")] if deleted else [])]
    for request in left:
        await engine.rpc.call(request.method, request.params)
    await roll_back(engine, DB, Key("volume", "a"), wipe=True)
    assert await through_a_host(engine, state) == b"\x01" * 512
    assert {one.in_spdk for one in engine.desired().volumes()} == {"disk", "db", "a"}
    stores = await engine.rpc.call("bdev_lvol_get_lvols")
    assert sorted(one["name"] for one in stores) == ["a", "db"]


async def test_while_a_controller_shows_it_it_stays_as_it_is(engine: Engine) -> None:
    await change(engine, create=(Volume("a", "lvol", pool="p", snapshot_of="db"), SHOWN))
    with pytest.raises(ConflictError, match="volume db: in use by controller x, which would see it change"):
        await roll_back(engine, DB, Key("volume", "a"), wipe=True)
