"""The API of a host of a fleet: what is changed there is the fleet's, in etcd; and it shows the hosts."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from api_process import serving, token
from etcd_server import running

from nvmuser.client import Client
from nvmuser.paths import StateDir

NVMUSER = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


def run(state: StateDir, *words: str) -> str:
    command = [*NVMUSER, "--state-dir", str(state.root), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_same_daemon_for_a_fleet(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("f")
    state = StateDir(directory / "h1")
    with running(directory / "etcd") as etcd:
        run(state, "target", "start", "--profile", "eco", "--no-hugepages")
        try:
            with serving(state, "--listen", "127.0.0.1:0") as (_, (url,)):
                secret = token(state, "operator")
                with Client(url, secret) as client:
                    assert client.request("GET", "/v1/hosts")["items"] == []
                    run(state, "fleet", "init", "--etcd", etcd.url)
                    run(state, "fleet", "join", "--etcd", etcd.url, "--name", "h1", "--adopt")
                    client.create("volumes", {"name": "a", "size": "8M"})
                    made = client.create("controllers", {"name": "c", "namespaces": ["a"]})
                    assert made.status["state"] == "in-sync"
                    (host,) = client.request("GET", "/v1/hosts")["items"]
                    assert (host["name"], host["live"], host["controllers"], host["volumes"]) == ("h1", True, 1, 1)
                    last = run(state, "fleet", "events", "-n", "1")
                    assert "token operator" in last
                    shown = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {secret}"}, timeout=60).text
                    assert "nvmuser_fleet_followed{" in shown
                    client.delete("controllers", "c")
                    client.delete("volumes", "a", wipe=True)
        finally:
            run(state, "target", "stop")
