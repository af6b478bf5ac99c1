"""Growth is all or nothing: the store, the files and what SPDK shows agree, whatever fails."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from spdk_model import part_of_actual
from test_engine import MIB, ModelRpc, engine_on

from nvmuser.errors import RpcServerError, SetupError, TargetError
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import engine as engine_module
from nvmuser.reconcile import site as site_module
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.engine import Engine
from nvmuser.store import Store


@pytest.fixture
def rpc(monkeypatch: pytest.MonkeyPatch) -> ModelRpc:
    async def query(rpc: ModelRpc) -> Actual:
        return rpc.spdk.actual

    async def query_part(rpc: ModelRpc, part: Desired) -> Actual:
        return part_of_actual(rpc.spdk.actual, part)

    for module in (engine_module, site_module):
        monkeypatch.setattr(module, "query", query)
    monkeypatch.setattr(site_module, "query_part", query_part)
    return ModelRpc()


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def sizes(engine: Engine, state: StateDir, rpc: ModelRpc | None) -> dict[str, set[int]]:
    """Of each volume: in the store, of its file, in SPDK."""
    with Store(state.store) as store:  # what is on the disk, not what the engine remembers
        volumes = store.load().volumes()
    assert {volume.key: volume for volume in engine._store.load().volumes()} == {v.key: v for v in volumes}
    return {
        volume.name: {volume.size, os.stat(volume.path).st_size, *([rpc.spdk.find(volume.name).size] if rpc else [])}
        for volume in volumes
    }


async def create(engine: Engine, *names: str) -> Change:
    """The change that makes them twice as large."""
    outcome = await engine.change(Change(create=tuple(Volume(name, size=MIB) for name in names)))
    volumes = [Volume.from_json(one) for one in outcome.objects]
    return Change(update=tuple(replace(volume, size=2 * MIB) for volume in volumes))


async def test_a_file_that_cannot_grow_leaves_all_of_them(
    state: StateDir, rpc: ModelRpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(engine_on(state, rpc)) as engine:
        grow = await create(engine, "a", "b", "c")
        truncate = os.truncate

        def full(path: str, size: int) -> None:
            if path.endswith("/b") and size > MIB:
                raise OSError(errno.ENOSPC, "No space left on device")
            truncate(path, size)

        monkeypatch.setattr(os, "truncate", full)
        with pytest.raises(TargetError, match=r"^volume b: .*No space left on device; nothing was changed$"):
            await engine.change(grow)
        assert sizes(engine, state, rpc) == {"a": {MIB}, "b": {MIB}, "c": {MIB}}
        assert (await engine.reconcile()).calls == 0


async def test_what_spdk_refuses_leaves_the_file_as_it_was(state: StateDir, rpc: ModelRpc) -> None:
    with contextlib.closing(engine_on(state, rpc)) as engine:
        grow = await create(engine, "a")

        def refuse(effect: str) -> None:
            if effect == "before bdev_aio_rescan":
                raise RpcServerError("bdev_aio_rescan", {}, -28, "No space left on device")

        rpc.trap = refuse
        with pytest.raises(TargetError, match=r"nothing was changed$"):
            await engine.change(grow)
        assert sizes(engine, state, rpc) == {"a": {MIB}}


async def test_what_a_guest_has_seen_stays_and_is_named(state: StateDir, rpc: ModelRpc) -> None:
    with contextlib.closing(engine_on(state, rpc)) as engine:
        grow = await create(engine, "a", "b")
        seen: list[str] = []

        def refuse_second(effect: str) -> None:
            if effect == "before bdev_aio_rescan":
                seen.append(effect)
                if len(seen) >= 2:
                    raise RpcServerError("bdev_aio_rescan", {}, -12, "Cannot allocate memory")

        rpc.trap = refuse_second
        with pytest.raises(TargetError, match=r"^volume b: .*; but for volume a has 2M now, nothing was changed$"):
            await engine.change(grow)
        assert sizes(engine, state, rpc) == {"a": {2 * MIB}, "b": {MIB}}
        assert (await engine.reconcile()).problems == ()


async def test_without_a_target_a_growth_that_fails_is_taken_back_too(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(engine_on(state, None)) as engine:
        grow = await create(engine, "a", "b")
        truncate = os.truncate

        def full(path: str, size: int) -> None:
            if path.endswith("/b") and size > MIB:
                raise OSError(errno.EFBIG, "File too large")
            truncate(path, size)

        monkeypatch.setattr(os, "truncate", full)
        with pytest.raises(TargetError, match="File too large; nothing was changed"):
            await engine.change(grow)
        assert sizes(engine, state, None) == {"a": {MIB}, "b": {MIB}}


class FullDisk:
    """A connection to SQLite whose disk is full at one statement; SQLite then rolls back by itself."""

    def __init__(self, real: sqlite3.Connection, statement: str) -> None:
        self._real = real
        self._statement = statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, statement: str, *args: Any) -> Any:
        self._check(statement)
        return self._real.execute(statement, *args)

    def executemany(self, statement: str, *args: Any) -> Any:
        self._check(statement)
        return self._real.executemany(statement, *args)

    def _check(self, statement: str) -> None:
        if statement.startswith(self._statement):
            self._real.rollback()
            raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize("statement", ["COMMIT", "INSERT"])
async def test_what_could_not_be_recorded_is_not_done_later(state: StateDir, rpc: ModelRpc, statement: str) -> None:
    with contextlib.closing(engine_on(state, rpc)) as engine:
        grow = await create(engine, "a")
        real = engine._store._db
        engine._store._db = cast(sqlite3.Connection, FullDisk(real, statement))
        with pytest.raises(SetupError, match="database or disk is full"):
            await engine.change(grow)
        engine._store._db = real
        outcome = await engine.reconcile()
        assert (outcome.calls, outcome.problems) == (0, ())
        assert sizes(engine, state, rpc) == {"a": {MIB}}
