"""The engine when something fails after the work is done, and when others change the store meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_engine import MIB, ModelRpc, engine_on, rpc, state  # noqa: F401 (fixtures)

from nvmuser.errors import SetupError, TargetError
from nvmuser.hostfs import files, locks
from nvmuser.model.change import Change
from nvmuser.model.desired import Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.store import Store

A, B = Volume("a", size=4 * MIB), Volume("b", size=4 * MIB)
X = Controller("x", (Namespace("a"),))


class TargetRpc(ModelRpc):
    peer_pid = 1


async def test_volumes_that_may_not_be_locked_are_served_and_said(
    state: StateDir,  # noqa: F811
    rpc: ModelRpc,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container: all is done, so that it must not be called a failure that has changed nothing."""
    target = TargetRpc()

    def refuse(_pid: int, _paths: Any) -> Any:
        raise SetupError("/v/a: cannot lock it for process 1: Operation not permitted")

    with contextlib.closing(engine_on(state, target)) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(locks, "lock_for", refuse)
            outcome = await engine.change(Change(create=(A, X)))
        assert outcome.problems == ()
        assert sorted(engine._store.load().entries) == [Key("controller", "x"), Key("volume", "a")]
        assert "a" in target.spdk.bdevs
        (warning,) = engine.warnings
        assert warning.startswith("volumes are not locked against other programs: /v/a: cannot lock it")
        monkeypatch.setattr(locks, "lock_for", lambda _pid, _paths: [])
        await engine.reconcile()
        assert engine.warnings == ()


@pytest.mark.parametrize("can_take_back", [True, False])
async def test_an_error_after_the_work_takes_it_back_or_says_what_stands(
    state: StateDir,  # noqa: F811
    rpc: ModelRpc,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    can_take_back: bool,
) -> None:
    """What was made cannot be recorded as made: the disk is full by now."""

    def full(*_: Any, **__: Any) -> None:
        raise SetupError("s: no room to record it: database or disk is full")

    with contextlib.closing(engine_on(state, rpc)) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "mark", full)
            if not can_take_back:
                patch.setattr("nvmuser.reconcile.retraction.take_back", full)
            with pytest.raises((SetupError, TargetError), match="no room") as failure:
                await engine.change(Change(create=(A, X)))
        await engine.reconcile()
        if can_take_back:
            assert engine._store.load().entries == {}
            assert not rpc.spdk.bdevs
        else:
            assert "recorded all the same, since that could not be undone" in str(failure.value)
            assert sorted(engine._store.load().entries) == [Key("controller", "x"), Key("volume", "a")]


async def test_a_deletion_that_is_recorded_meanwhile_stays(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Two commands without a supervisor: one makes files while the other deletes."""
    real = files.provision

    def provision(volume: Volume) -> None:
        real(volume)
        with Store(state.store) as other, other.transaction():
            other.put([Entry(other.load().entries[volume.key].object, deleting=True)])

    monkeypatch.setattr(files, "provision", provision)
    with contextlib.closing(engine_on(state, None)) as engine:
        await engine.change(Change(create=(A,)))
    with Store(state.store) as store:
        assert not store.load().entries or store.load().entries[Key("volume", "a")].deleting


async def test_what_another_has_changed_meanwhile_is_not_taken_back(
    state: StateDir,  # noqa: F811
    rpc: ModelRpc,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grown: list[Volume] = []

    def refuse(effect: str) -> None:
        if effect != "before nvmf_create_subsystem":
            return
        with Store(state.store) as other, other.transaction():
            entry = other.load().entries[Key("volume", "a")]
            assert isinstance(entry.object, Volume)
            grown.append(replace(entry.object, size=8 * MIB))
            other.put([replace(entry, object=grown[0])])
        raise TargetError("no")

    rpc.trap = refuse
    with contextlib.closing(engine_on(state, rpc)) as engine, contextlib.suppress(TargetError):
        await engine.change(Change(create=(A, B, X)))
    with Store(state.store) as store:
        assert store.load().entries[Key("volume", "a")].object == grown[0]
        assert Key("controller", "x") not in store.load().entries


def test_a_process_that_has_ended_has_nothing_to_lock(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    assert locks.lock_for(2**22 - 1, [str(path)]) == []


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ProcessLookupError(3, "No such process")])
@pytest.mark.parametrize("ended", [True, False])
def test_one_that_ends_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, ended: bool
) -> None:
    """Only of one that lives is it an error, and one of ours."""
    path = tmp_path / "a"
    path.touch()

    def listdir(_path: str) -> list[str]:
        if ended:
            sleeper.kill()
        raise error

    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        monkeypatch.setattr(os, "listdir", listdir)
        monkeypatch.setattr("nvmuser.hostfs.locks._END_GRACE", 60.0 if ended else 0.0)
        if ended or isinstance(error, ProcessLookupError):
            assert locks.lock_for(sleeper.pid, [str(path)]) == []
        else:
            with pytest.raises(SetupError, match=f"process {sleeper.pid} has open: Permission denied"):
                locks.lock_for(sleeper.pid, [str(path)])
        sleeper.kill()


async def test_a_slow_disk_keeps_nothing_else_waiting(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A target's end must be seen while a file is synchronised."""
    going_on = threading.Event()
    real = os.fsync

    def fsync(number: int) -> None:
        assert going_on.wait(60), "the event loop waits for the disk"
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.closing(engine_on(state, None)) as engine:
        changing = asyncio.ensure_future(engine.change(Change(create=(A,))))
        asyncio.get_running_loop().call_later(0, going_on.set)
        assert (await changing).problems == ()
