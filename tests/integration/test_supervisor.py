"""The target's process, started as the supervisor does, and what a supervisor that runs can be asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmuser.errors import RpcServerError, TargetError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor import daemon
from nvmuser.supervisor.settings import Settings
from nvmuser.supervisor.spdk import Options, Target
from nvmuser.toolchain import find_spdk


async def test_a_killed_target_leaves_nothing_in_shared_memory(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    for needed in (state.run, state.logs):
        needed.mkdir()
    target = await Target.start(state, find_spdk(), Options(profile="eco", hugepages=False), 1)
    pid = target.process.pid
    assert await target.rpc.call("spdk_get_version")
    await target.process.kill()
    await target.close()
    assert [name for name in os.listdir("/dev/shm") if name.endswith(f".pid{pid}")] == []


async def test_a_target_has_room_for_as_many_controllers_as_is_said(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    for needed in (state.run, state.logs):
        needed.mkdir()
    options = Options(profile="eco", hugepages=False, max_controllers=2)
    target = await Target.start(state, find_spdk(), options, 1)
    try:
        for number in range(2):
            await target.rpc.call("nvmf_create_subsystem", {"nqn": f"nqn.2026-11.org.nvmuser:{number}"})
        with pytest.raises(RpcServerError, match="Unable to create subsystem"):
            await target.rpc.call("nvmf_create_subsystem", {"nqn": "nqn.2026-11.org.nvmuser:2"})
    finally:
        await target.process.kill()
        await target.close()


QUIET = Options(profile="eco", hugepages=False)


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """With a short path, for the sockets in it."""
    return StateDir(tmp_path_factory.mktemp("s"))


async def test_a_standby_comes_and_goes_while_the_target_goes_on(state: StateDir) -> None:
    async with daemon.running(state, QUIET) as control:
        before = (await control.call("status"))["target"]
        for wanted in (True, True, False, False, True):
            await control.call("stand_by", {"wanted": wanted}, timeout=None)
            target = (await control.call("status"))["target"]
            assert (target["standby"] is not None, target["pid"]) == (wanted, before["pid"])
            assert Settings.load(state).standby == wanted


async def test_status_shows_what_is_wrong_with_objects_as_long_as_it_is(state: StateDir, tmp_path: Path) -> None:
    path, away = tmp_path / "a", tmp_path / "away"
    path.write_bytes(bytes(1 << 20))
    async with daemon.running(state, QUIET) as control:

        async def errors() -> list[str]:
            status = await control.call("status")
            return [error.partition(" ")[2] for error in status["errors"] if "volume a" in error]

        create = Change(create=(Volume("a", size=1 << 20, path=str(path)),))
        await control.call("change", {"change": create.to_json()}, timeout=None)
        path.rename(away)
        with pytest.raises(TargetError, match=f"was replaced; .* {path}: No such file"):
            await control.call("restart", timeout=None)
        gone = f"volume a: {path}: the backing file is gone; its data cannot be served"
        assert await errors() == [gone]
        away.rename(path)
        await control.call("reconcile", timeout=None)
        assert await errors() == []
        path.rename(away)
        await control.call("reconcile", timeout=None)
        assert await errors() == [f"{gone} (2 times)"]
        await control.call("change", {"change": Change(delete=(Key("volume", "a"),)).to_json()}, timeout=None)
        assert await errors() == []
