"""Pools on a file system that fills up: they come back after a crash, and after there is room again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_target import TargetFactory
from private_tmpfs import private_tmpfs

from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import pool_room
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.rpc import Client

MIB = 1 << 20


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    with private_tmpfs("96m") as path:
        yield path


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))


async def recovered(engine: Engine, target_factory: TargetFactory) -> Outcome:
    """A killed target's successor gets everything."""
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine.rpc = rpc
        outcome = await engine.reconcile()
    target.kill()
    engine.rpc = None
    return outcome


async def made(engine: Engine, tmpfs: Path, target_factory: TargetFactory) -> None:
    """A guest's disk in a pool on a file of the small file system; the target is killed."""
    with (tmpfs / "base").open("wb") as file:
        file.truncate(48 * MIB)
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine.rpc = rpc
        create = (
            Volume("base", path=str(tmpfs / "base")),
            Pool("p", base="base", cluster_size=1 << 16),
            Volume("disk", backend="lvol", pool="p", size=16 * MIB),
            Controller("x", (Namespace("disk"),)),
        )
        assert (await engine.change(Change(create=create))).problems == ()
    target.kill()
    engine.rpc = None


async def test_a_pool_comes_back_on_a_full_file_system(
    tmp_path: Path, tmpfs: Path, target_factory: TargetFactory
) -> None:
    with contextlib.closing(Engine(StateDir(tmp_path / "st"))) as engine:
        await made(engine, tmpfs, target_factory)
        fill(tmpfs / "filler")
        for _ in range(2):
            assert (await recovered(engine, target_factory)).problems == ()


async def test_a_pool_without_room_is_back_when_there_is_some(
    tmp_path: Path, tmpfs: Path, target_factory: TargetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of pools that were made when nothing was reserved yet."""
    with contextlib.closing(Engine(StateDir(tmp_path / "st"))) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(pool_room, "reserve_all", lambda _desired: {})
            await made(engine, tmpfs, target_factory)
        fill(tmpfs / "filler")
        target = target_factory.start()
        async with await Client.connect(target.rpc_socket) as rpc:
            engine.rpc = rpc
            problems = {problem.object: problem.message for problem in (await engine.reconcile()).problems}
            assert "base: No space left on device: its metadata needs 16K there" in problems[Key("pool", "p")]
            assert problems[Key("volume", "disk")] == "waits for what failed below it"
            (tmpfs / "filler").unlink()
            outcome = await engine.reconcile()
            assert (outcome.problems, outcome.calls > 0) == ((), True)
            assert await rpc.call("bdev_get_bdevs", {"name": "p/disk"})
            assert (await engine.reconcile()).calls == 0
