"""Clients of SPDK's RPC server that die: the server has room for 64 connections, and a dead one takes none of it."""

from __future__ import annotations

import json
import select
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
