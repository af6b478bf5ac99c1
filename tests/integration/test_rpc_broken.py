"""Clients of SPDK's RPC server that die: the server has room for 64 connections, and a dead one takes none of it."""

from __future__ import annotations

import json
import select
import signal
import socket
from pathlib import Path

from backing import call
from bare_target import BareTarget

from nvmuser.rpc.methods import Request

CONNECTIONS = 64
WAITING = {"method": "bdev_get_bdevs", "params": {"name": "never", "timeout": 600_000}}
"""A request that is carried out for as long as this test runs."""


def die_early(path: Path) -> None:
    """End with a request in progress and a reply unread: the server is told so by ECONNRESET."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        for number, request in enumerate((WAITING, {"method": "spdk_get_version"})):
            client.sendall(json.dumps({"jsonrpc": "2.0", "id": number, **request}).encode())
        assert select.select([client], [], [], 20)[0], "no reply"


def test_connections_that_end_early(spdk_target: BareTarget) -> None:
    for _ in range(2 * CONNECTIONS):
        die_early(spdk_target.rpc_socket)
    assert call(spdk_target, Request("spdk_get_version", {}))[0]["version"]


def test_an_answer_is_sent_when_it_is_made(spdk_target: BareTarget) -> None:
    """Not by the next look at all connections (patch 0098): it is there although the server dies in the same look."""
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.connect(str(spdk_target.rpc_socket))
            ask(client, "spdk_get_version")
            assert client.recv(1 << 16)  # it is served, and each look takes them in this order
        spdk_target.process.send_signal(signal.SIGSTOP)
        ask(first, "spdk_get_version")
        ask(second, "spdk_kill_instance", sig_name="SIGKILL")
        spdk_target.process.send_signal(signal.SIGCONT)
        assert spdk_target.process.wait(20) == -signal.SIGKILL
        assert b"SPDK" in first.recv(1 << 16)


def ask(client: socket.socket, method: str, **params: str) -> None:
    client.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or None}).encode())
