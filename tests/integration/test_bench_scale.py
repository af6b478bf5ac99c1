"""`nvmuser bench scale` with few controllers: that each part runs, and that the result has its keys."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def measured(output: Path, part: str, counts: str) -> dict[str, Any]:
    """The document of one part, measured once."""
    argv = [sys.executable, "-c", "from nvmuser.cli.main import main; main()", "bench", "scale", "--only", part]
    options = ["--counts", counts, "--rounds", "1", "--output", str(output), "--json"]
    done = subprocess.run([*argv, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (output / "report.html").read_text().count("<svg") >= 1
    document: dict[str, Any] = json.loads(done.stdout)
    assert json.loads((output / "result.json").read_text()) == document
    return document


def test_the_control_plane(tmp_path: Path) -> None:
    document = measured(tmp_path / "out", "control", "2,4")
    assert list(document["control"]) == ["2", "4"]
    for point in document["control"].values():
        for key in ("per_second", "create_s", "status_s", "compare_s", "reapply_s", "restore_s"):
            assert point[key] > 0, key
        assert set(point["rss_bytes"]) == {"target", "endpoint", "supervisor"}
        assert all(value > 1 << 20 for value in point["rss_bytes"].values())
    assert document["slope"].keys() >= {"create_s", "status_s", "compare_s", "reapply_s", "restore_s", "rss_target"}


def test_busy_controllers(tmp_path: Path) -> None:
    document = measured(tmp_path / "out", "busy", "1,3")
    for point in document["busy"].values():
        for key in ("iops", "ratio", "all_iops", "all_ratio"):
            assert point[key] > 0, key


def test_recovery_of_clients(tmp_path: Path) -> None:
    document = measured(tmp_path / "out", "recovery", "1,3")
    for point in document["recovery"].values():
        assert 0 < point["stall_s"]["median"] <= point["stall_s"]["max"]
    assert "stall_max" in document["slope"]
