"""The target's process, started as the supervisor does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmuser.errors import RpcServerError
from nvmuser.paths import StateDir
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
