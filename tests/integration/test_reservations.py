"""One writer for a remote's namespace: reservations, against real targets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from bare_target import TargetFactory
from remote_pair import NQN, Pair, free_port

from nvmuser import initiator
from nvmuser.errors import NvmeStatusError, TargetError
from nvmuser.hostfs import host_identity, reservation_keys
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client
from nvmuser.rpc.methods import reservations
from nvmuser.rpc.methods.reservations import Completion, Report

DISK, STORE = Key("volume", "disk"), Key("remote", "far")


async def reported(rpc: Client) -> Report:
    """Who is registered, as a target reads it."""
    request = reservations.report("far", 1)
    return Report.parse(Completion.parse(await rpc.call(request.method, request.params)).data)


async def open_disk(pair: Pair) -> None:
    await pair.admit(host_identity.load(pair.state).nqn)
    await pair.listen()
    await pair.attach("127.0.0.1")


@asynccontextmanager
async def second(pair: Pair, directory: Path, factory: TargetFactory) -> AsyncIterator[Engine]:
    """Another installation, which the remote admits too."""
    state = StateDir(directory)
    target = factory.start("second", polled=True)
    async with await Client.connect(target.rpc_socket) as rpc:
        engine = Engine(state, rpc)
        await pair.admit(host_identity.load(state).nqn)
        yield engine
        engine.close()


def wanted(pair: Pair, **fields: object) -> Change:
    remote = Remote("far", nqn=NQN, paths=(RemotePath("127.0.0.1", pair.port),))
    disk = Volume("disk", "remote", remote="far", remote_nsid=1, **fields)  # type: ignore[arg-type]
    return Change(create=(remote, disk, Controller("y", (Namespace("disk"),))))


def write(state: StateDir, controller: str, block: int, data: bytes) -> None:
    with initiator.connect(state.target_dir(controller)) as host, host.queue(4, timeout=30) as queue:
        queue.write(host.namespace(1), block, data).wait()


async def test_the_second_host_is_refused_with_who_has_it(
    pair: Pair, tmp_path: Path, target_factory: TargetFactory
) -> None:
    await open_disk(pair)
    rpc = pair.engine.rpc
    assert rpc
    first = (await reported(rpc)).holder
    assert first
    assert reservation_keys.load(pair.state).is_ours(first.key)
    async with second(pair, tmp_path / "b", target_factory) as other:
        begun = time.monotonic()
        with pytest.raises(TargetError) as caught:
            await other.change(wanted(pair))
        print(f"refused in {time.monotonic() - begun:.3f} s: {caught.value}")
        text = str(caught.value)
        assert host_identity.load(pair.state).id[:18] in text
        assert f"{first.key:#x}" in text
        assert other.desired().wanted() == []
        assert (await reported(rpc)).registrants == (first,)
        await asyncio.to_thread(write, pair.state, "x", 0, os.urandom(4096))


async def test_a_successor_takes_it_from_its_predecessor_and_gives_it_up_with_the_volume(
    pair: Pair, target_factory: TargetFactory
) -> None:
    await open_disk(pair)
    assert pair.engine.rpc
    before = (await reported(pair.engine.rpc)).holder
    pair.near.kill()
    async with await Client.connect(target_factory.start("next", polled=True).rpc_socket) as rpc:
        pair.engine.rpc = rpc
        assert (await pair.engine.reconcile()).problems == ()
        (now,) = (await reported(rpc)).registrants
        assert before
        assert now.holder
        assert now.key != before.key
        assert now.host_id != before.host_id
        await asyncio.to_thread(write, pair.state, "x", 0, os.urandom(4096))
        assert (await pair.engine.reconcile()).calls == 0
        await pair.engine.change(Change(delete=(Key("controller", "x"), DISK)))
        assert (await reported(rpc)).registrants == ()


async def test_taken_from_by_force_it_writes_no_more(pair: Pair, tmp_path: Path, target_factory: TargetFactory) -> None:
    await open_disk(pair)
    assert pair.engine.rpc
    first = (await reported(pair.engine.rpc)).holder
    assert first
    async with second(pair, tmp_path / "b", target_factory) as other:
        assert (await other.change(wanted(pair, take_over=f"{first.key:#x}"))).problems == ()
        await asyncio.to_thread(write, StateDir(tmp_path / "b"), "y", 0, b"b" * 4096)
        with pytest.raises(NvmeStatusError) as caught:
            await asyncio.to_thread(write, pair.state, "x", 0, b"a" * 4096)
        assert (caught.value.status_type, caught.value.code) == (0, 0x83)
        assert await pair.engine.changed_hands() == [DISK]
        (problem,) = (await pair.engine.reconcile()).problems
        assert problem.object == DISK
        assert host_identity.load(StateDir(tmp_path / "b")).id[:18] in problem.message
        # And back, by a person's word.
        assert other.rpc
        theirs = (await reported(other.rpc)).holder
        assert theirs
        disk = pair.engine.desired().get(DISK)
        assert isinstance(disk, Volume)
        outcome = await pair.engine.change(Change(update=(replace(disk, take_over=f"{theirs.key:#x}"),)))
        assert outcome.problems == ()
        await asyncio.to_thread(write, pair.state, "x", 0, b"a" * 4096)


async def test_what_a_remote_has_forgotten_is_taken_again(pair: Pair) -> None:
    await open_disk(pair)
    rpc = pair.engine.rpc
    assert rpc
    holder = (await reported(rpc)).holder
    assert holder
    request = reservations.unregister("far", 1, holder.key)
    await rpc.call(request.method, request.params)
    assert await pair.engine.changed_hands() == [DISK]
    assert (await pair.engine.reconcile()).problems == ()
    assert (await reported(rpc)).holder == holder
    assert await pair.engine.changed_hands() == []


async def test_who_accepts_other_writers_takes_no_reservation(
    pair: Pair, tmp_path: Path, target_factory: TargetFactory
) -> None:
    await pair.listen()
    async with second(pair, tmp_path / "b", target_factory) as other:
        assert (await other.change(wanted(pair, shared_ok=True))).problems == ()
        assert other.rpc
        assert (await reported(other.rpc)).registrants == ()
        (warning,) = other.warnings
        assert warning.startswith("volume disk: other hosts may write to it: ")


@pytest.mark.matrix
async def test_asymmetric_access_is_respected(pair: Pair) -> None:
    """I/O, and the commands about reservations, take the path by which the namespace can be reached."""
    await pair.far.call("nvmf_delete_subsystem", {"nqn": NQN})
    await pair.far.call(
        "nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "serial_number": "FAR", "ana_reporting": True}
    )
    await pair.far.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "m"}})
    ports = (pair.port, free_port())
    where = [{"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)} for port in ports]
    for address in where:
        await pair.far.call("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": address})
    remote = Remote("far", nqn=NQN, paths=tuple(RemotePath("127.0.0.1", port) for port in ports))
    disk = Volume("disk", "remote", remote="far", remote_nsid=1)
    change = Change(create=(remote, disk, Controller("x", (Namespace("disk"),))))
    assert (await pair.engine.change(change)).problems == ()
    for reached, closed in (where, where[::-1]):
        for address, state in ((reached, "optimized"), (closed, "inaccessible")):
            params = {"nqn": NQN, "listen_address": address, "ana_state": state}
            await pair.far.call("nvmf_subsystem_listener_set_ana_state", params)
        await asyncio.to_thread(write, pair.state, "x", 0, os.urandom(4096))
        assert (await pair.engine.reconcile()).problems == ()
        assert (await pair.engine.changed_hands()) == []
        ways = {way.port: str(way).partition(", ")[2] for way in (await pair.engine.status()).remotes}
        assert ways[int(reached["trsvcid"])] == "connected, optimized"
        assert ways[int(closed["trsvcid"])] == "connected, inaccessible"
