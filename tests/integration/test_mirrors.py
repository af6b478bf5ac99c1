"""Mirrors that lose members: served by what is left, also after a restart; members replaced and rebuilt."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from bare_target import TargetFactory

from nvmuser import initiator
from nvmuser.errors import ConflictError
from nvmuser.model.change import Change, replace_member
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

MIB = 1 << 20
SIZE = 64 * MIB
REBUILD_S = 60.0


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "st")


@asynccontextmanager
async def running(state: StateDir, targets: TargetFactory) -> AsyncIterator[Engine]:
    """An engine on a target of its own, which is killed at the end."""
    target = targets.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine = Engine(state, rpc)
        yield engine
        engine.close()
    target.kill()


async def make_mirror(engine: Engine) -> None:
    members = (Volume("a", size=SIZE), Volume("b", size=SIZE))
    mirror = Volume("m", "raid1", members=("a", "b"))
    outcome = await engine.change(Change(create=(*members, mirror, Controller("x", (Namespace("m"),)))))
    assert outcome.problems == ()


async def write(state: StateDir, lba: int, data: bytes) -> None:
    def act() -> None:
        with initiator.connect(state.target_dir("x")) as host, host.queue(4, timeout=20) as queue:
            queue.write(host.namespace(1), lba, data).wait()
            queue.flush(host.namespace(1)).wait()

    await asyncio.to_thread(act)


async def read(state: StateDir, lba: int) -> bytes:
    def act() -> bytes:
        back = bytearray(MIB)
        with initiator.connect(state.target_dir("x")) as host, host.queue(4, timeout=20) as queue:
            queue.read(host.namespace(1), lba, back).wait()
        return bytes(back)

    return await asyncio.to_thread(act)


async def rebuilt(engine: Engine) -> None:
    async with asyncio.timeout(REBUILD_S):
        while (await engine.status()).mirrors:  # noqa: ASYNC110 (a rebuild tells no event)
            await asyncio.sleep(0.05)
        while any(volume.stale for volume in engine.desired().volumes()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def replaced(engine: Engine, old: str, new: str) -> None:
    """`volume replace-member`, and its rebuild."""
    mirror = engine.desired().get(Key("volume", "m"))
    assert isinstance(mirror, Volume)
    await engine.change(Change(create=(Volume(new, size=SIZE),)))
    await engine.change(Change(update=(replace_member(mirror, old, new),)))
    await rebuilt(engine)


async def test_lost_degraded_replaced_and_the_other_lost(state: StateDir, target_factory: TargetFactory) -> None:
    first, second, third = (os.urandom(MIB) for _ in range(3))
    async with running(state, target_factory) as engine:
        await make_mirror(engine)
        await write(state, 3, first)
        await write(state, 40 * 2048, first)
    (state.volumes / "a").unlink()
    async with running(state, target_factory) as engine:
        outcome = await engine.reconcile()
        assert {problem.object for problem in outcome.problems} == {Key("volume", "a")}
        (mirror,) = (await engine.status()).mirrors
        assert (mirror.raid.online, mirror.in_sync, mirror.missing) == (True, ("b",), ("a",))
        assert await read(state, 3) == first
        await write(state, 3, second)
    async with running(state, target_factory) as engine:  # degraded across another restart
        await engine.reconcile()
        assert await read(state, 3) == second
        await replaced(engine, "a", "c")
        await write(state, 5000, third)
        assert (await engine.change(Change(delete=(Key("volume", "a"),), wipe=True))).problems == ()
    (state.volumes / "b").unlink()
    async with running(state, target_factory) as engine:
        await engine.reconcile()
        (mirror,) = (await engine.status()).mirrors
        assert (mirror.in_sync, mirror.missing) == (("c",), ("b",))
        assert await read(state, 3) == second
        assert await read(state, 5000) == third
        assert await read(state, 40 * 2048) == first


async def test_a_member_that_comes_back_is_rebuilt_never_read(state: StateDir, target_factory: TargetFactory) -> None:
    old, new = os.urandom(MIB), os.urandom(MIB)
    async with running(state, target_factory) as engine:
        await make_mirror(engine)
        await write(state, 0, old)
    (state.volumes / "a").rename(state.volumes / "away")
    async with running(state, target_factory) as engine:
        await engine.reconcile()
        await write(state, 0, new)
    # The newest data is away: what the other one has must not be taken for it.
    (state.volumes / "away").rename(state.volumes / "a")
    (state.volumes / "b").rename(state.volumes / "away")
    async with running(state, target_factory) as engine:
        problems = {problem.object: problem.message for problem in (await engine.reconcile()).problems}
        assert "only a is there, which missed writes; bring b back" in problems[Key("volume", "m")]
    (state.volumes / "away").rename(state.volumes / "b")
    async with running(state, target_factory) as engine:
        await engine.reconcile()
        assert await read(state, 0) == new
        await rebuilt(engine)
    (state.volumes / "b").unlink()
    async with running(state, target_factory) as engine:
        await engine.reconcile()
        assert await read(state, 0) == new


async def test_a_healthy_member_is_replaced_and_the_last_good_one_is_not(
    state: StateDir, target_factory: TargetFactory
) -> None:
    data = os.urandom(MIB)
    async with running(state, target_factory) as engine:
        await make_mirror(engine)
        await write(state, 7, data)
        await replaced(engine, "a", "c")
        assert await read(state, 7) == data
        mirror = engine.desired().get(Key("volume", "m"))
        assert isinstance(mirror, Volume)
        with pytest.raises(ConflictError, match="members cannot change"):
            await engine.change(Change(update=(replace(mirror, members=("c",) * 3),)))
    (state.volumes / "c").unlink()
    async with running(state, target_factory) as engine:
        await engine.reconcile()
        mirror = engine.desired().get(Key("volume", "m"))
        assert isinstance(mirror, Volume)
        await engine.change(Change(create=(Volume("d", size=SIZE),)))
        with pytest.raises(ConflictError, match="newest data is on b alone"):
            await engine.change(Change(update=(replace_member(mirror, "b", "d"),)))
        assert await read(state, 7) == data
