"""Remotes by name while a path is down: when another address is taken, and when SPDK is left to try on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Remote
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile import remotes
from nvmuser.reconcile.actual import query_remotes
from nvmuser.reconcile.plan import plan
from nvmuser.reconcile.reroute import moved, reachable
from nvmuser.rpc.client import Client
from nvmuser.supervisor.reroutes import Attempts

NQN = "nqn.2026-11.org.example:far"


class Spdk:
    """What it says of its paths: address → state."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.states: Mapping[str, str] = {}

    async def call(self, method: str, _params: object = None) -> Any:
        assert method == "bdev_nvme_get_controllers"
        trids = [
            (state, {"traddr": address, "trsvcid": str(self.port), "subnqn": NQN})
            for address, state in self.states.items()
        ]
        return [{"name": "far", "ctrlrs": [{"state": state, "trid": trid} for state, trid in trids]}]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a listener at 127.0.0.2 and 127.0.0.3, not at 127.0.0.1."""

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(hang_up, "127.0.0.2", 0))
        number = int(server.sockets[0].getsockname()[1])
        await stack.enter_async_context(await asyncio.start_server(hang_up, "127.0.0.3", number))
        yield number


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Name → addresses, as the resolver has them."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **options: Any) -> Any:
        if host not in known:
            return real(host, *rest, **options)
        found = known[host]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


UP, DOWN = "enabled", "reconnect_is_delayed"
A, B, C = "127.0.0.1", "127.0.0.2", "127.0.0.3"


@pytest.mark.parametrize(
    ("states", "resolved", "adds", "detaches"),
    [
        ({A: DOWN}, [B], [B], [A]),
        ({A: "resetting"}, [B], [B], [A]),
        ({A: DOWN}, [A, B], [B], [A]),
        ({A: DOWN}, [A], [], []),
        ({A: DOWN}, [], [], []),
        ({B: DOWN}, [B, C], [], []),
        ({B: UP}, [C], [], []),
        ({B: UP}, [], [], []),
        ({B: DOWN}, [A], [], []),
        ({}, [B], [], []),
    ],
    ids=str,
)
async def test_when_a_path_moves(
    port: int,
    names: dict[str, list[str]],
    tmp_path: Path,
    states: dict[str, str],
    resolved: list[str],
    adds: list[str],
    detaches: list[str],
) -> None:
    names["store.test"] = resolved
    remote = Remote("far", nqn=NQN, paths=(RemotePath("store.test", port),))
    desired, spdk = Desired({remote.key: Entry(remote)}), Spdk(port)
    spdk.states = states
    state = StateDir(tmp_path / "st")
    found = await moved(desired, cast(Client, spdk), state)
    assert found == ([remote] if adds else [])
    if adds:
        actual = await query_remotes(cast(Client, spdk))
        routes = await remotes.explore(desired, actual, state)
        calls = [
            (call.verb, call.request.params["traddr"]) for call in plan(desired, actual, Path, routes=routes).calls
        ]
        assert calls == [("add", address) for address in adds] + [("delete", address) for address in detaches]


async def test_a_path_with_a_connection_stays_beside_one_that_moves(
    port: int, names: dict[str, list[str]], tmp_path: Path
) -> None:
    names["one.test"], names["two.test"] = [C], [B]
    paths = (RemotePath("one.test", port), RemotePath("two.test", port))
    remote = Remote("far", nqn=NQN, paths=paths)
    desired, spdk = Desired({remote.key: Entry(remote)}), Spdk(port)
    spdk.states = {A: DOWN, B: UP}
    assert await moved(desired, cast(Client, spdk), StateDir(tmp_path / "st")) == [remote]
    actual = await query_remotes(cast(Client, spdk))
    routes = await remotes.explore(desired, actual, StateDir(tmp_path / "st"))
    calls = [(call.verb, call.request.params["traddr"]) for call in plan(desired, actual, Path, routes=routes).calls]
    assert calls == [("add", C), ("delete", A)]
    assert [str(way) for way in remotes.ways(desired, actual, routes)] == [
        f"far: {A}:{port}, no connection",
        f"far: two.test:{port} at {B}:{port}, connected",
    ]


async def test_addresses_are_left_to_spdk(port: int, tmp_path: Path) -> None:
    remote = Remote("far", nqn=NQN, paths=(RemotePath(A, port),))
    spdk = Spdk(port)
    spdk.states = {A: DOWN}
    assert await moved(Desired({remote.key: Entry(remote)}), cast(Client, spdk), StateDir(tmp_path / "st")) == []


async def test_what_could_not_be_attached_is_reachable_again(port: int, tmp_path: Path) -> None:
    """As after the start of a target while the remote was away. One that is attached, SPDK tries by itself."""

    class Empty(Spdk):
        async def call(self, method: str, _params: object = None) -> Any:
            return []

    def remote(address: str) -> Remote:
        return Remote("far", nqn=NQN, paths=(RemotePath(address, port),))

    async def found(spdk: Spdk, address: str, *failing: Key) -> list[Remote]:
        one = remote(address)
        return await reachable(Desired({one.key: Entry(one)}), failing, cast(Client, spdk), StateDir(tmp_path / "st"))

    key = remote(B).key
    assert await found(Empty(port), B, key) == [remote(B)]
    assert await found(Empty(port), B) == [], "nothing is wrong with it"
    assert await found(Empty(port), A, key) == [], "nobody listens there"
    there = Spdk(port)
    there.states = {B: DOWN}
    assert await found(there, B, key) == []


def test_what_keeps_failing_is_tried_each_time_later() -> None:
    attempts, key = Attempts(), Key("remote", "far")
    due = [look for look in range(1, 100) if attempts.due([key])]
    assert due == [1, 3, 7, 15, 31, 51, 71, 91]
    assert not attempts.due([])
    assert attempts.due([key]), "at once, when it is new"
