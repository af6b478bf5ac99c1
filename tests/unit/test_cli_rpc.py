"""`nvmuser rpc` behaves as SPDK's rpc.py: whose option is whose, piped commands, plugins, dry runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmuser.paths import StateDir
from nvmuser.rpc import Server

NVMUSER = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


class Spdk:
    """Answers as SPDK on one socket, and remembers the calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Spdk:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()

        def method(name: str) -> Any:
            async def answer(**params: Any) -> Any:
                self.calls.append((name, params))
                return [{"name": "b"}] if name == "bdev_get_bdevs" else True

            return answer

        names = ("nvmf_create_subsystem", "bdev_get_bdevs", "bdev_null_create", "plugged")
        async with Server(self.path, {name: method(name) for name in names}):
            self._ready.set()
            await self._over.wait()


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "st")
    state.run.mkdir(parents=True)
    return state


@pytest.fixture
def ours(state: StateDir) -> Iterator[Spdk]:
    with Spdk(state.rpc_socket) as spdk:
        yield spdk


def rpc(state: StateDir, *words: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*NVMUSER, "--state-dir", str(state.root), "rpc", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, input=stdin, env={**os.environ, **env}
    )


def test_an_option_of_the_command_is_no_socket(state: StateDir, ours: Spdk) -> None:
    ended = rpc(state, "nvmf_create_subsystem", "nqn.2026-11.org.example:a", "-a", "-s", "SER1")
    assert (ended.returncode, ended.stderr) == (0, "")
    ((name, params),) = ours.calls
    assert (name, params["serial_number"], params["allow_any_host"]) == ("nvmf_create_subsystem", "SER1", True)


def test_an_option_of_the_command_is_no_deadline(state: StateDir, ours: Spdk) -> None:
    """`-t` of bdev_get_bdevs is in milliseconds, and SPDK's."""
    ended = rpc(state, "-t", "30", "bdev_get_bdevs", "-b", "b", "-t", "1")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ours.calls == [("bdev_get_bdevs", {"name": "b", "timeout": 1})]


def test_a_socket_before_the_command(state: StateDir, tmp_path: Path) -> None:
    with Spdk(tmp_path / "other.sock") as other:
        assert rpc(state, "-s", str(other.path), "bdev_get_bdevs").returncode == 0
    assert [name for name, _ in other.calls] == ["bdev_get_bdevs"]
    refused = rpc(state, "bdev_get_bdevs", "-s", str(other.path))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "unrecognized arguments: -s" in refused.stderr


def test_commands_from_a_pipe(state: StateDir, ours: Spdk) -> None:
    script = "# made by hand\n\nbdev_null_create 'n 0' 16 512\nbdev_get_bdevs -b b\n"
    ended = rpc(state, stdin=script)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [name for name, _ in ours.calls] == ["bdev_null_create", "bdev_get_bdevs"]
    assert ours.calls[0][1]["name"] == "n 0"
    broken = rpc(state, stdin="bdev_get_bdevs\nbdev_frob\nbdev_get_bdevs\n")
    assert broken.returncode == 2
    assert broken.stderr.startswith("nvmuser: line 2: SPDK has no command 'bdev_frob'")
    assert len(ours.calls) == 3
    assert "line 1: bdev_null_create 'n: No closing quotation" in rpc(state, stdin="bdev_null_create 'n").stderr


def test_a_plugin_adds_commands(state: StateDir, ours: Spdk, tmp_path: Path) -> None:
    (tmp_path / "extra_commands.py").write_text(
        "def spdk_rpc_plugin_initialize(subparsers):\n"
        "    command = subparsers.add_parser('plugged')\n"
        "    command.add_argument('size', type=int)\n"
        "    command.set_defaults(func=lambda args: print(args.client.plugged(size=args.size)))\n"
    )
    (tmp_path / "no_commands.py").write_text("")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = rpc(state, "--plugin", "extra_commands", "plugged", "3", PYTHONPATH=path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")
    assert ours.calls == [("plugged", {"size": 3})]
    for name, words in (("no_commands", "has no function"), ("missing_module", "No module named")):
        refused = rpc(state, "--plugin", name, "plugged", PYTHONPATH=path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert words in refused.stderr


def test_a_dry_run_prints_the_request_alone(state: StateDir) -> None:
    ended = rpc(state, "--dry-run", "bdev_get_bdevs", "-b", "b")
    assert ended.returncode == 0
    assert json.loads(ended.stdout.removeprefix("Request:")) == {"method": "bdev_get_bdevs", "params": {"name": "b"}}


def test_a_coprocess_gets_a_status_a_line(state: StateDir, ours: Spdk) -> None:
    ended = rpc(state, "--server", stdin="bdev_get_bdevs\nbdev_frob\nbdev_null_create n 16 512\n")
    assert [line for line in ended.stdout.splitlines() if line.startswith("**")] == [
        "**STATUS=0", "**STATUS=1", "**STATUS=0",
    ]  # fmt: skip
    assert len(ours.calls) == 2


def test_a_configuration_that_is_no_json(state: StateDir, ours: Spdk) -> None:
    ended = rpc(state, "load_config", stdin="{")
    assert ended.returncode == 2
    assert ended.stderr.startswith("nvmuser: load_config: JSONDecodeError")
    assert ended.stderr.count("\n") == 1
