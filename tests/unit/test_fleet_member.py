"""The supervisor's part in a fleet: whatever becomes of it is said, and nothing else ends."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nvmuser.fleet.settings import FleetSettings
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.supervisor.fleet_member import FleetMember


async def change(change: dict[str, Any], by: dict[str, str]) -> dict[str, Any]:
    raise AssertionError("nothing is to be changed")


async def trouble(state: StateDir) -> str:
    """What a member says at first; it goes on all the same."""
    member = FleetMember(state, Engine(state), change)
    running = asyncio.create_task(member.run())
    try:
        async with asyncio.timeout(20):
            while not member.troubles:  # noqa: ASYNC110 (others' doing)
                await asyncio.sleep(0.01)
        assert not running.done()
        return member.troubles[0]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_no_fleet_is_no_trouble(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    member = FleetMember(state, Engine(state), change)
    running = asyncio.create_task(member.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert (member.troubles, running.done()) == ((), False)
    FleetSettings("main", "h1", ("http://127.0.0.1:1",)).save(state)
    member.look_again()
    async with asyncio.timeout(20):
        while not member.troubles:  # noqa: ASYNC110 (others' doing)
            await asyncio.sleep(0.01)
    assert "fleet main: etcd is not to be had (127.0.0.1:1: connection refused)" in member.troubles[0]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    state, missing = StateDir(tmp_path), str(tmp_path / "ca.pem")
    FleetSettings("main", "h1", ("https://127.0.0.1:1",), missing, missing, missing).save(state)
    assert await trouble(state) == f"fleet main: {missing}: No such file or directory"


async def test_the_extra_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path)
    FleetSettings("main", "h1", ("http://127.0.0.1:1",)).save(state)
    for name in [name for name in sys.modules if name.startswith(("nvmuser.fleet.agent", "nvmuser.fleet.etcd"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert "pip install 'nvmuser[fleet]'" in await trouble(state)


async def test_settings_of_another_version(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.fleet.write_text(json.dumps({"fleet": "main", "wings": 2}))
    assert "damaged, or of another version" in await trouble(state)
