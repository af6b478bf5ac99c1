"""`volume stats`: SPDK's counters as a person reads them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nvmuser.cli.volume import volume
from nvmuser.errors import NotFoundError, TargetNotRunning
from nvmuser.model.change import Change
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.statistics import Counters, Statistics
from nvmuser.rpc import Server

COUNTERS = {
    **dict.fromkeys(("num_unmap_ops", "bytes_unmapped", "unmap_latency_ticks"), 0),
    **{"num_read_ops": 1500, "bytes_read": 6 << 20, "read_latency_ticks": 3_000_000},
    **{"num_write_ops": 2, "bytes_written": 8192, "write_latency_ticks": 80_000},
}


def test_counters_become_means() -> None:
    one = Statistics.from_spdk("a", COUNTERS, 10_000_000)
    assert one.read == Counters(1500, 6 << 20, 0.3)
    read = {"operations": 1500, "bytes": 6 << 20, "mean_latency_us": 200.0, "latency_s": 0.3}
    assert one.to_json()["read"] == read
    assert one.to_json()["unmap"]["mean_latency_us"] is None
    assert (one - one).write == Counters(0, 0, 0.0)


@pytest.fixture
async def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "s")
    engine = Engine(state)
    await engine.change(Change(create=(Volume("a", "null", size=1 << 20, volatile=True),)))
    engine.close()
    return state


def run(state: StateDir, *arguments: str) -> str:
    result = CliRunner().invoke(volume, ["stats", *arguments], obj=state, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


async def test_a_table_for_people_and_json_for_programs(state: StateDir) -> None:
    async def bdevs(**_params: Any) -> list[dict[str, Any]]:
        return [{"name": "a", "num_blocks": 2048, "block_size": 512}]

    async def iostat(**_params: Any) -> dict[str, Any]:
        return {"tick_rate": 10_000_000, "bdevs": [{"name": "a", **COUNTERS}, {"name": "stranger", **COUNTERS}]}

    state.run.mkdir()
    async with Server(state.rpc_socket, {"bdev_get_bdevs": bdevs, "bdev_get_iostat": iostat}):
        table = await asyncio.to_thread(run, state)
        assert "1,500" in table
        assert "6 MiB" in table
        assert "200 µs" in table
        assert "stranger" not in table
        text = await asyncio.to_thread(run, state, "a", "--json", "--interval", "0.01")
        assert '"interval_s": 0.01' in text
        assert '"operations": 0' in text


async def test_without_a_target_or_such_a_volume_it_says_so(state: StateDir) -> None:
    with pytest.raises(TargetNotRunning, match="target start"):
        await asyncio.to_thread(run, state)
    with pytest.raises(NotFoundError, match="volume none: no such volume"):
        await asyncio.to_thread(run, state, "none")
