"""`nvmuser bench neighbour` once, shortly: everything beside the reader happens, and the result has its keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nvmuser.bench.scenarios.neighbour import BESIDE

ACTS = {"attach", "snapshot", "recover", "create"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command has left."""
    directory = tmp_path_factory.mktemp("neighbour")
    argv = [sys.executable, "-c", "from nvmuser.cli.main import main; main()", "bench", "neighbour"]
    options = ["--rounds", "1", "--runtime", "0.2", "--output", str(directory)]
    done = subprocess.run([*argv, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory


def test_everything_happens(directory: Path) -> None:
    found = json.loads((directory / "summary.json").read_text())
    for key in ("ratio", "ratio_ci", "iops", "p99_9_us", "max_us", "commands", "client_waited", "target_waited"):
        assert set(found[key]) == set(BESIDE), key
    assert all(count > 0 for name, count in found["commands"].items() if BESIDE[name].work), found["commands"]
    assert found["commands"]["nothing"] == 0
    assert found["fairness"] > 0
    assert set(found["act_s"]) == ACTS
    assert all(took > 0 for took in found["act_s"].values())
    assert all(iops > 0 for iops in found["iops"].values())


def test_only_reports_are_left(directory: Path) -> None:
    assert {path.name for path in directory.iterdir()} == {"summary.json", "report.md", "report.html"}
    assert "write_zeroes" in (directory / "report.md").read_text()
