"""`bench fleet` with a few simulated hosts, and `fleet demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
@pytest.mark.parametrize("without", [(), ("--without", "guests", "--without", "ceph")])
def test_the_demo(without: tuple[str, ...]) -> None:
    found = run("fleet", "demo", "--json", *without)
    hosts = {host["name"]: host for host in found["hosts"]}  # type: ignore[attr-defined]
    assert {"vm3", "vm4"} <= set(hosts["h2"]["controllers"]), "one has moved, one was taken from a host that was gone"
    assert sorted(name for host in hosts.values() for name in host["controllers"]) == ["vm1", "vm2", "vm3", "vm4"]
    assert all(host["live"] for host in hosts.values())
    assert [host["guests"] for host in hosts.values()] == [[], [] if without else ["box", "pad"], []]
    assert found["ceph"] is not bool(without)
    assert not any(Path("/proc", str(pid)).exists() for pid in found["pids"].values())  # type: ignore[attr-defined]
