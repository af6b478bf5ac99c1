"""What `nvmuser status` prints of what a supervisor answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner

from nvmuser.cli.main import cli
from nvmuser.errors import RpcTimeoutError
from nvmuser.paths import StateDir
from nvmuser.rpc import Server

TARGET = {
    "pid": 11, "ready": True, "answers": True, "down": "", "spdk": "26.01", "profile": "throughput", "cores": [1, 2],
    "hugepages": False, "standby": 12, "restarts": 1, "last_ending": "killed by SIGKILL", "startup_s": 1.25,
}  # fmt: skip
GUEST = {
    "controller": "c0", "pid": 9, "phase": "serving", "messages": 70, "recoveries": 1,
    "last_stall": 0.25, "longest_stall": None,
}  # fmt: skip
FACTS: dict[str, Any] = {
    "supervisor": {"pid": 10},
    "target": TARGET,
    "targets": {"spdk": TARGET, "fast": TARGET | {"answers": False, "standby": None, "last_ending": "", "restarts": 0}},
    "endpoint": {"pid": 13, "rss_kib": 100, "controllers": 2},
    "guests": [],
    "errors": ["2026-11-27T10:00:00+00:00 [disk] is full"],
}
OBJECTS: dict[str, Any] = {
    "in_sync": ["volume/a", "controller/c"], "drifted": ["volume/b"], "missing": [], "foreign": ["bdev x"],
    "conflicts": [], "space": [], "mirrors": [],
    "remotes": [
        {"remote": "r", "path": "[::1]:4420", "address": "::1", "port": 4420, "connected": True},
        {"remote": "r", "path": "s:4420", "address": "10.0.0.2", "port": 4420, "connected": True,
         "states": ["non_optimized"]},
    ],
}  # fmt: skip


async def status(state: StateDir, facts: dict[str, Any], objects: dict[str, Any] | Exception, *words: str) -> str:
    """What the command prints when a supervisor has these answers."""

    async def drift() -> dict[str, Any]:
        if isinstance(objects, Exception):
            raise objects
        return objects

    async def answer() -> dict[str, Any]:
        return facts

    async with Server(state.control_socket, {"status": answer, "drift": drift}):
        arguments = ["--state-dir", str(state.root), "status", *words]
        result = await asyncio.to_thread(CliRunner().invoke, cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """With a short path, for the socket in it."""
    state = StateDir(tmp_path_factory.mktemp("s"))
    state.run.mkdir()
    return state


async def test_lines(state: StateDir) -> None:
    assert (await status(state, FACTS, OBJECTS)).splitlines() == [
        "target    ready, pid 11, SPDK 26.01, no hugepages, standby 12",
        "          profile throughput, core 1, 2",
        "          1 restart, last killed by SIGKILL, start-up 1.25 s",
        "target    fast: does not answer, pid 11, SPDK 26.01, no hugepages",
        "          profile throughput, core 1, 2",
        "          0 restarts, start-up 1.25 s",
        "          watched over by supervisor, pid 10",
        "endpoint  pid 13, 2 controllers, 100 KiB",
        "error     2026-11-27T10:00:00+00:00 [disk] is full",
        "objects   2 in sync",
        "remote    r: [::1]:4420, connected",
        "remote    r: s:4420 at 10.0.0.2:4420, connected, non-optimized",
        "drifted   volume/b",
        "foreign   bdev x",
        "guests    none",
    ]


async def test_guests_are_a_table(state: StateDir) -> None:
    *_, titles, guest = (await status(state, FACTS | {"guests": [GUEST]}, OBJECTS)).splitlines()
    assert titles.split("  ")[0] == "controller"
    assert guest.split() == ["c0", "9", "serving", "70", "1", "0.25", "s", "-"]


async def test_what_is_known_is_shown_when_the_target_hangs(state: StateDir) -> None:
    error = RpcTimeoutError("bdev_get_bdevs: no reply")
    shown = json.loads(await status(state, FACTS, error, "--json"))
    assert shown["objects"] == {}
    assert shown["errors"][0] == FACTS["errors"][0]
    assert shown["errors"][1].endswith("not compared with what is wanted: bdev_get_bdevs: no reply")
