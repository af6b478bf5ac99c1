"""A file or block device is one volume's, by whichever of its paths it is declared."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest
from test_engine import MIB, ModelRpc, engine_on, rpc, state  # noqa: F401

from nvmuser.errors import ConflictError
from nvmuser.hostfs import block_devices, locks
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.declare import declared
from nvmuser.rpc import Client
from nvmuser.store import Store


class TargetRpc(ModelRpc):
    peer_pid = 1


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    """Three of one file, by the names of volumes."""
    found = {"a": tmp_path / "dd.img", "b": tmp_path / "dd.lnk", "c": tmp_path / "dd.hard"}
    found["a"].write_bytes(bytes(8 * MIB))
    found["b"].symlink_to(found["a"])
    found["c"].hardlink_to(found["a"])
    return {name: str(path) for name, path in found.items()}


@pytest.mark.parametrize("name", ["b", "c"])
def test_a_link_is_the_file(state: StateDir, paths: dict[str, str], name: str) -> None:  # noqa: F811
    reason = f"volume {name}: its path, {paths[name]}, is volume a's already, as {paths['a']}"
    with pytest.raises(ConflictError, match=f"^{reason}$"):
        declared(Desired(), Change((Volume("a", path=paths["a"]), Volume(name, path=paths[name]))), state)
    one = declared(Desired(), Change((Volume("a", path=paths["a"]),)), state)
    with open(paths["a"], "r+b") as target:  # which must not be named as somebody else
        fcntl.flock(target, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match=f"^{reason}$"):
            declared(one, Change((Volume(name, path=paths[name]),)), state)
        with pytest.raises(ConflictError, match=f"^volume {name}: its path, {paths['a']}, is volume a's already$"):
            declared(one, Change((Volume(name, path=paths["a"]),)), state)
    declared(one, Change((Volume(name, path=paths[name]),), delete=(Key("volume", "a"),)), state)


def test_a_file_that_is_still_to_be_made(state: StateDir, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "link").symlink_to(tmp_path)
    two = (Volume("a", path=str(tmp_path / "d"), size=MIB), Volume("b", path=str(tmp_path / "link/d"), size=MIB))
    with pytest.raises(ConflictError, match=r"volume b: its path, .*/link/d, is volume a's already, as"):
        declared(Desired(), Change(two), state)


def test_a_block_device_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    device = os.stat_result((0o060660, 5, 6, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": 0x700})
    monkeypatch.setattr(os, "stat", lambda path: device)
    assert block_devices.identity("/dev/loop0") == block_devices.identity("/dev/disk/by-id/x") == 0x700


async def test_of_volumes_that_share_a_file_one_is_served(
    state: StateDir,  # noqa: F811
    rpc: ModelRpc,  # noqa: F811
    paths: dict[str, str],
) -> None:
    """As recorded before this was checked, or when a link came later."""
    volumes = [Volume(name, path=path, size=8 * MIB, uuid=f"{n}") for n, (name, path) in enumerate(paths.items())]
    state.root.mkdir(exist_ok=True)
    with Store(state.store) as store, store.transaction():
        store.put([Entry(volume, provisioned=volume.name == "b") for volume in volumes])
    with contextlib.closing(engine_on(state, rpc)) as engine:
        outcome = await engine.reconcile()
        assert set(rpc.spdk.bdevs) == {"b"}  # its data are there
        assert {str(problem) for problem in outcome.problems} == {
            f"volume {name}: its path, {paths[name]}, is volume b's already, as {paths['b']}" for name in "ac"
        }
        status = await engine.status()
        assert {key.name for key in status.missing} == {"a", "c"}


async def test_what_cannot_be_locked_is_not_served(
    state: StateDir,  # noqa: F811
    rpc: ModelRpc,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program has locked it since we looked, while a target opened it."""
    target = TargetRpc()

    def refuse(_pid: int, paths: Iterable[str]) -> list[tuple[str, ConflictError]]:
        return [(path, ConflictError(f"{path}: open elsewhere already")) for path in paths]

    monkeypatch.setattr(locks, "lock_for", lambda _pid, paths: [])
    with contextlib.closing(engine_on(state, None)) as engine:
        await engine.change(Change((Volume("a", size=4 * MIB), Controller("x", (Namespace("a"),)))))
        engine.rpc = cast(Client, target)
        with monkeypatch.context() as patch:
            patch.setattr(locks, "lock_for", refuse)
            outcome = await engine.reconcile()
        assert [str(problem.object) for problem in outcome.problems] == ["volume/a"]
        assert "a" not in target.spdk.bdevs
        await engine.reconcile()
        assert "a" in target.spdk.bdevs
        monkeypatch.setattr(locks, "lock_for", refuse)
        await engine.reconcile()
        assert "a" in target.spdk.bdevs  # opened before: guests use it
