"""`nvmuser bench neighbour` without SPDK: what is refused, and what is made of what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from nvmuser.bench.measure import environment
from nvmuser.bench.report import neighbour_page
from nvmuser.bench.scenarios.neighbour import BASE, BESIDE, BULK, SHALLOW, NeighbourPlan, NeighbourResult
from nvmuser.bench.scenarios.neighbour_clients import Seen
from nvmuser.cli.bench import bench
from nvmuser.errors import UsageError
from nvmuser.paths import StateDir

NAMES = ("nothing", "writer", "flush", "discard", "write_zeroes", "attach", "snapshot", "recover", "create", "bulk")


def seen(iops: float, act_s: float | None = None) -> Seen:
    return Seen(iops, 250.0, 1000.0, 10, act_s, 0.02, 0.01)


@pytest.fixture
def result() -> NeighbourResult:
    header = {
        "created": "2026-11-01T12:00:00+00:00",
        "noise": 0.2,
        "environment": environment.look().begun(),
        "file_system": "ext4",
        "versions": {"spdk": "26.01"},
    }
    # The second round on a machine half as fast: ratios are of one round each.
    rounds = {
        BASE: [seen(1000), seen(500)],
        "flush": [seen(900), seen(450)],
        "attach": [seen(800, 0.1), seen(400, 0.3)],
    }
    return NeighbourResult(NeighbourPlan(tuple(rounds), 2), rounds, header)


def test_everything_that_is_promised_is_there() -> None:
    assert set(NAMES) <= set(BESIDE)


def test_ratios_are_of_one_round_each(result: NeighbourResult) -> None:
    found = result.to_json()
    assert found["ratio"] == {BASE: 1.0, "flush": 0.9, "attach": 0.8}
    assert found["ratio_ci"]["attach"] == [0.8, 0.8]
    assert found["iops"]["flush"] == 675
    assert found["p99_9_us"][BASE] == 250
    assert found["commands"]["flush"] == 20
    assert found["fairness"] is None
    assert found["act_s"] == {"attach": pytest.approx(0.2)}


def test_fairness_is_of_a_deep_queue_over_a_shallow_one(result: NeighbourResult) -> None:
    rounds = {BASE: [seen(1000)], BULK: [seen(90)], SHALLOW: [seen(120)]}
    fair = NeighbourResult(NeighbourPlan(tuple(rounds), 1, memory=True), rounds, result.header)
    assert fair.to_json()["fairness"] == 0.75
    assert fair.to_json()["backing"] == "memory"
    assert "- Fairness: 0.75" in neighbour_page.markdown(fair)


def test_tables(result: NeighbourResult) -> None:
    text = neighbour_page.markdown(result)
    [row] = [line for line in text.splitlines() if line.startswith("| attach |")]
    assert "| 0.80 | 0.80 to 0.80 | 600 | 250 µs | 1 ms | 200 ms | 2 %, 1 % |" in row
    assert "**This machine was busy" in text
    page = neighbour_page.html(result)
    assert "Write" not in page, "only what was measured"
    assert "<svg" in page
    assert BESIDE["attach"].what in page


def test_an_unknown_neighbour_is_refused(tmp_path: Path) -> None:
    arguments = ["neighbour", "--only", "flush,shout", "--output", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="--only shout: choose among nothing, writer"):
        CliRunner().invoke(bench, arguments, obj=StateDir(tmp_path), catch_exceptions=False)
    assert not (tmp_path / "out").exists()
