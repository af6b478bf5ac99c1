"""`bench fleet` with a few simulated hosts, and `fleet demo`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nvmuser.bench.scenarios.fleet import percentile

NVMUSER = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


def run(*words: str) -> dict[str, object]:
    ended = subprocess.run([*NVMUSER, *words], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, object] = json.loads(ended.stdout)
    return found


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(200)]
    assert percentile(values, 99) == 198
    assert percentile([3.0], 99) == 3


def test_simulated_hosts_join_and_carry_out() -> None:
    found = run("bench", "fleet", "--hosts", "0", "--simulated", "6", "--changes", "4", "--json")
    figures = found["simulated"]["6"]  # type: ignore[index]
    assert set(figures) == {"join_s", "apply_s", "change_p50_s", "change_p99_s"}
    assert all(value > 0 for value in figures.values())


@pytest.mark.matrix
def test_the_demo() -> None:
    found = run("fleet", "demo", "--json")
    where = {host["name"]: host["controllers"] for host in found["hosts"]}  # type: ignore[attr-defined]
    assert "vm3" in where["h2"], "it has moved"
    assert sorted(name for names in where.values() for name in names) == ["vm1", "vm2", "vm3"]
    assert all(host["live"] for host in found["hosts"])  # type: ignore[attr-defined]
