"""A fleet by its command line: two hosts with real targets on one machine, and an etcd that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from etcd_server import Etcd, running

from nvmuser.paths import StateDir

NVMUSER = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


@dataclass
class Host:
    state: StateDir

    def run(self, *words: str, status: int = 0, stdin: str = "") -> str:
        command = [*NVMUSER, "--state-dir", str(self.state.root), *words]
        ended = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == status, ended.stdout + ended.stderr
        return ended.stdout if status == 0 else ended.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def until(self, *words: str, says: str) -> None:
        """Ask until it is said; fails after 20 s."""
        end = time.monotonic() + 20
        while says not in (found := self.run(*words)):
            assert time.monotonic() < end, found


@dataclass
class TwoHosts:
    etcd: Etcd
    h1: Host
    h2: Host


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    directory = tmp_path_factory.mktemp("fleet")
    with running(directory / "etcd") as etcd:
        hosts = [Host(StateDir(directory / name)) for name in ("h1", "h2")]
        try:
            for host in hosts:
                host.run("target", "start", "--profile", "eco", "--no-hugepages")
            hosts[0].run("volume", "create", "disk", "--size", "8M")
            hosts[0].run("controller", "create", "own", "--attach", "disk")
            hosts[0].run("fleet", "init", "--etcd", etcd.url)
            for host, name in zip(hosts, ("h1", "h2"), strict=True):
                host.run("fleet", "join", "--etcd", etcd.url, "--name", name, "--adopt")
            yield TwoHosts(etcd, *hosts)
        finally:
            for host in hosts:
                host.run("target", "stop")


SPEC = """
volumes: [{name: a, size: 8M}]
controllers: [{name: ca, namespaces: [a], host: h2}]
"""


def test_a_fleet_from_any_host(fleet: TwoHosts, tmp_path: Path) -> None:
    h1, h2 = fleet.h1, fleet.h2
    before = h1.run("export")
    (tmp_path / "spec.yaml").write_text(SPEC)
    h1.run("diff", "-f", str(tmp_path / "spec.yaml"), status=1)
    assert h1.run("apply", "-f", str(tmp_path / "spec.yaml")).splitlines() == [
        "created volume a",
        "created controller ca",
    ]
    assert h2.state.socket("ca").exists(), "when the command has ended, a guest can connect"
    assert h1.run("apply", "-f", str(tmp_path / "spec.yaml")) == "nothing to do\n"
    h2.run("volume", "create", "b", "--size", "8M")
    h2.run("controller", "attach", "ca", "b")
    shown = h1.json("fleet", "show")
    assert {host["name"]: (host["live"], host["controllers"], host["volumes"]) for host in shown["hosts"]} == {
        "h1": (True, 1, 1),
        "h2": (True, 1, 2),
    }
    assert h1.run("export") == before
    assert [row["name"] for row in h1.json("fleet", "list", "--host", "h2")] == ["ca", "a", "b"]
    assert "in use by controller ca" in h2.run("volume", "delete", "b", "--yes", status=1)
    last = h1.json("fleet", "events", "-n", "1")[-1]
    assert (last["action"], last["name"], last["host"], last["on"]) == ("update", "ca", "h2", "h2")


def test_etcd_away_ends_changes_and_nothing_else(fleet: TwoHosts) -> None:
    h1 = fleet.h1
    fleet.etcd.kill()
    refused = h1.run("volume", "create", "late", "--size", "8M", status=1)
    assert refused.startswith("nvmuser: etcd is not to be had (127.0.0.1:")
    assert "nothing can be changed until it is" in refused
    h1.until("status", says="fleet main: etcd is not to be had")
    os.kill(h1.json("status")["target"]["pid"], signal.SIGKILL)
    h1.until("status", says="1 restart")
    assert h1.state.socket("own").exists()
    h1.run("target", "restart")
    fleet.etcd.start()
    h1.run("volume", "create", "late", "--size", "8M")
    h1.until("fleet", "show", says="live")


def test_a_host_leaves_with_what_it_has(fleet: TwoHosts) -> None:
    h2 = fleet.h2
    before = h2.run("export")
    h2.run("fleet", "leave")
    assert h2.run("export") == before
    assert "belongs to no fleet" in h2.run("fleet", "show", status=1)
    h2.run("volume", "create", "alone", "--size", "8M")
    assert [host["name"] for host in fleet.h1.json("host", "list")] == ["h1"]
