"""The client, and `nvmuser rpc`, against the real server: its limits, its errors, its commands."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bare_target import BareTarget

from nvmuser.errors import RpcConnectionError, RpcServerError, UsageError
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.rpc.client import SPDK_REQUEST_MAX


async def test_hundreds_in_flight(spdk_target: BareTarget) -> None:
    async with await Client.connect(spdk_target.rpc_socket) as client:
        assert client.peer_pid == spdk_target.process.pid
        calls = (client.call("bdev_get_bdevs", {"name": f"b{n}"}) for n in range(500))
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in results} == {RpcServerError}
    assert {one.code for one in results if isinstance(one, RpcServerError)} == {-19}


async def test_the_largest_request(spdk_target: BareTarget) -> None:
    """One byte more than our limit ends the connection: the limit is the server's."""
    path = spdk_target.rpc_socket
    frame = len(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "m", "params": {"p": ""}}, separators=(",", ":")))
    async with await Client.connect(path) as client:
        with pytest.raises(RpcServerError, match="Method not found"):
            await client.call("m", {"p": "x" * (SPDK_REQUEST_MAX - frame)})
        with pytest.raises(UsageError):
            await client.call("m", {"p": "x" * (SPDK_REQUEST_MAX + 1 - frame)})
    async with await Client.connect(path, max_request=1 << 20) as client:
        with pytest.raises(RpcConnectionError):
            await client.call("m", {"p": "x" * (SPDK_REQUEST_MAX + 100 - frame)})


async def test_names_that_are_not_ascii(spdk_target: BareTarget) -> None:
    async with await Client.connect(spdk_target.rpc_socket) as client:
        params = {"name": "größe-名前", "num_blocks": 2048, "block_size": 512}
        assert await client.call("bdev_null_create", params) == "größe-名前"
        (bdev,) = await client.call("bdev_get_bdevs")
        assert bdev["name"] == "größe-名前"


async def test_the_end_of_the_target_ends_the_calls(spdk_target: BareTarget) -> None:
    async with await Client.connect(spdk_target.rpc_socket) as client:
        await client.call("spdk_get_version")
        waiting = [asyncio.create_task(client.call("bdev_get_bdevs", {"timeout": 5000, "name": "n"})) for _ in range(3)]
        await asyncio.sleep(0)
        spdk_target.kill()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(one) for one in results} == {RpcConnectionError}


def nvmuser(state: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", "from nvmuser.cli.main import main; main()", "--state-dir", str(state)]
    return subprocess.run(
        [*argv, *arguments], capture_output=True, text=True, check=False, env=dict(os.environ), input=stdin
    )


def test_spdks_own_commands(spdk_target: BareTarget, tmp_path: Path) -> None:
    socket = ("rpc", "-s", str(spdk_target.rpc_socket))
    made = nvmuser(tmp_path, *socket, "bdev_null_create", "n0", "16", "512")
    assert (made.returncode, made.stdout) == (0, "n0\n")
    shown = nvmuser(tmp_path, *socket, "bdev_get_bdevs", "-b", "n0")
    assert json.loads(shown.stdout)[0]["num_blocks"] == 16 * 2048
    again = nvmuser(tmp_path, *socket, "bdev_null_create", "n0", "16", "512")
    assert again.returncode == 1
    assert again.stderr == "nvmuser: bdev_null_create: File exists (code -17)\n"


def test_commands_from_a_pipe_with_options_of_their_own(spdk_target: BareTarget, tmp_path: Path) -> None:
    """`-s` of a command is a serial number there, not a socket."""
    state = StateDir(tmp_path / "st")
    state.run.mkdir(parents=True)
    state.rpc_socket.symlink_to(spdk_target.rpc_socket)
    commands = "nvmf_create_subsystem nqn.2026-11.org.example:a -a -s SER1\n# and\nnvmf_get_subsystems\n"
    ended = nvmuser(state.root, "rpc", stdin=commands)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [one["serial_number"] for one in json.loads(ended.stdout) if one["nqn"].endswith(":a")] == ["SER1"]


def test_help_and_mistakes(tmp_path: Path) -> None:
    listed = nvmuser(tmp_path, "rpc", "--help")
    assert listed.returncode == 0
    assert "bdev_aio_create" in listed.stdout
    helped = nvmuser(tmp_path, "rpc", "bdev_aio_create", "--help")
    assert helped.stdout.startswith("usage: nvmuser rpc bdev_aio_create")
    for arguments, words in (
        (("bdev_aio_creat",), "near: bdev_aio_create"),
        (("bdev_aio_create",), "required: filename, name"),
        (("bdev_get_bdevs",), "is the target running?"),
    ):
        failed = nvmuser(tmp_path, "rpc", *arguments)
        assert failed.returncode in (1, 2)
        assert words in failed.stderr
        assert failed.stderr.count("\n") == 1
