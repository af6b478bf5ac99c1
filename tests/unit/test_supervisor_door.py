"""How commands find the supervisor, what they say without one, and what is kept from one to the next."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvmuser.errors import ConflictError, SetupError, TargetError, TargetNotRunning
from nvmuser.paths import StateDir
from nvmuser.rpc import Server
from nvmuser.supervisor import control, daemon, spdk
from nvmuser.supervisor.process import Process
from nvmuser.supervisor.settings import Settings
from nvmuser.supervisor.spdk import Options, Target
from nvmuser.supervisor.unit import unit
from nvmuser.toolchain import Spdk


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """With a short path, for the sockets in it."""
    state = StateDir(tmp_path_factory.mktemp("s"))
    for directory in (state.run, state.logs):
        directory.mkdir()
    return state


async def test_nobody_is_there(state: StateDir) -> None:
    async with control.supervisor(state) as client:
        assert client is None
    with pytest.raises(TargetNotRunning, match=f"not running on {state.root}; `nvmuser target start` starts one"):
        await control.ask(state, "status")


async def test_the_supervisor_is_gone_and_the_rest_lives(state: StateDir) -> None:
    names = ("target-3", "endpoint")
    children = [Process.start(["sleep", "99"], pid_file=state.run / f"{n}.pid", log=state.logs / "l") for n in names]
    with pytest.raises(TargetNotRunning, match=r"gone, endpoint and target live.*`nvmuser target start` takes over"):
        await control.ask(state, "status")
    for child in children:
        await child.kill()
        child.close()
    with pytest.raises(TargetNotRunning, match="starts one"):
        await control.ask(state, "status")


async def test_stop_waits_for_the_process_that_answers(state: StateDir) -> None:
    """Whatever the pid file says."""
    script = """
import asyncio, sys
from pathlib import Path
from nvmuser.rpc import Server
async def main():
    end = asyncio.Event()
    async def stop():
        asyncio.get_running_loop().call_later(0.05, end.set)
    async with Server(Path(sys.argv[1]), {"stop": stop}):
        print(flush=True)
        await end.wait()
asyncio.run(main())
"""
    argv = [sys.executable, "-c", script, str(state.control_socket)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as supervisor, subprocess.Popen(["sleep", "99"]) as other:
        assert supervisor.stdout
        supervisor.stdout.readline()
        state.lock.write_text(f"{other.pid}\n")
        before = set(os.listdir("/proc/self/fd"))
        await daemon.stop(state)
        assert set(os.listdir("/proc/self/fd")) == before
        assert supervisor.poll() is not None
        assert other.poll() is None
        other.kill()


async def test_a_supervisor_of_another_pid_namespace_is_not_stopped(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[None] = []

    async def stop() -> None:
        stopped.append(None)

    def hold(_client: Any) -> Any:
        raise ProcessLookupError

    monkeypatch.setattr("nvmuser.rpc.client.Client.hold_peer", hold)
    async with Server(state.control_socket, {"stop": stop}):
        with pytest.raises(TargetError, match="another PID namespace"):
            await daemon.stop(state)
    assert stopped == []


def test_settings_hold_until_others_are_said(state: StateDir) -> None:
    assert Settings.load(state) == Settings()
    settings = Settings.load(state).with_said(standby=True, hugepages=False, log_size=None)
    settings.save(state)
    assert Settings.load(state) == Settings(standby=True, hugepages=False)
    assert Settings.load(state).with_said(standby=None, log_files=0) == Settings(True, False, log_files=0)
    inode = state.settings.stat().st_ino
    settings.save(state)
    assert state.settings.stat().st_ino == inode, "nothing is written that is there already"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"colour": 1}', "3"])
def test_damaged_settings(state: StateDir, content: str) -> None:
    state.settings.write_text(content)
    with pytest.raises(SetupError, match=f"{state.settings}: damaged, or of another version; remove it"):
        daemon.start(state, Options())
    assert state.settings.read_text() == content


def test_a_second_supervisor_names_the_ways_that_keep_guests(state: StateDir) -> None:
    with daemon.locked(state), pytest.raises(ConflictError) as refused, daemon.locked(state):
        pass
    for way in ("`nvmuser target restart`", "--standby or --no-standby", "lose them with `nvmuser target stop`"):
        assert way in str(refused.value)


def test_a_lock_on_a_full_disk(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with daemon.locked(state), pytest.raises(ConflictError, match="pid unknown"), daemon.locked(state):
        pass


def test_a_unit_of_an_ordinary_user(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "User=" not in unit(state, standby=False) or os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert "\nUser=nobody\n" in unit(state, standby=False)


STUB = """#!{python}
import asyncio, json, sys
from pathlib import Path
from nvmuser.rpc import Server
async def main():
    async def never():
        await asyncio.Event().wait()
    async with Server(Path(sys.argv[sys.argv.index("--rpc-socket") + 1]), {{"framework_wait_init": never}}):
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_target_that_never_becomes_ready_leaves_no_task(
    state: StateDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/nvmf_tgt"
    program.write_text(STUB.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(spdk, "_START_DEADLINE", 2.0)
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    options = Options(profile="eco", hugepages=False)
    with pytest.raises(TargetError, match="did not answer within 2 s"):
        await Target.start(state, Spdk(tmp_path, "1"), options, 1)
    gc.collect()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    assert complaints == []
    assert not list(state.run.glob("target-*.pid"))


def test_settings_travel_as_json(state: StateDir) -> None:
    assert Settings(**json.loads('{"standby": true, "log_files": 2}')).limits.files == 2
