"""What a dead target had on its way to a remote: held back in the store or in the network, it never lands late."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bare_target import TargetFactory
from held_files import Operation, held_files
from held_network import held_network
from remote_pair import NQN, Pair, open_pair

from nvmuser import initiator
from nvmuser.errors import HostError
from nvmuser.hostfs import host_identity
from nvmuser.paths import StateDir
from nvmuser.rpc import Client

OLD, NEW = b"old!" * 1024, b"new!" * 1024
PATIENCE_S = 60.0


@pytest.fixture
async def pair(tmp_path: Path, target_factory: TargetFactory) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path, target_factory) as pair:
        await pair.admit(host_identity.load(pair.state).nqn)
        await pair.listen()
        yield pair


def write(state: StateDir, data: bytes) -> None:
    with initiator.connect(state.target_dir("x")) as host, host.queue(4, timeout=PATIENCE_S) as queue:
        queue.write(host.namespace(1), 0, data).wait()


def start_write(state: StateDir, data: bytes) -> threading.Thread:
    """In a thread, since its target dies before it is answered."""

    def act() -> None:
        with contextlib.suppress(HostError):
            write(state, data)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


async def test_held_back_in_the_store(pair: Pair, tmp_path: Path, target_factory: TargetFactory) -> None:
    """The successor waits for what the store is carrying out."""
    source = tmp_path / "files"
    source.mkdir()
    source.joinpath("disk").write_bytes(bytes(16 << 20))
    with held_files(source) as files:
        await pair.far.call("bdev_aio_create", {"name": "held", "filename": f"{files.path}/disk", "block_size": 512})
        await pair.far.call("nvmf_subsystem_remove_ns", {"nqn": NQN, "nsid": 1})
        await pair.far.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "held", "nsid": 1}})
        await pair.attach("127.0.0.1")
        files.hold(Operation.WRITE)
        thread = start_write(pair.state, OLD)
        await asyncio.to_thread(files.wait_for, Operation.WRITE)
        pair.near.kill()
        await asyncio.to_thread(thread.join)
        files.hold()  # what comes from now on is not held
        async with await Client.connect(target_factory.start("next", polled=True).rpc_socket) as rpc:
            pair.engine.rpc = rpc
            successor = asyncio.create_task(pair.engine.reconcile())
            await asyncio.wait([successor], timeout=1)
            early = successor.done()
            if early:
                await asyncio.to_thread(write, pair.state, NEW)
            await asyncio.to_thread(files.release)
            assert (await successor).problems == ()
            if not early:
                await asyncio.to_thread(write, pair.state, NEW)
            assert source.joinpath("disk").read_bytes()[:4096] == NEW
            assert not early, "it did not wait, so that only luck has kept the data"


async def test_held_back_in_the_network(pair: Pair, target_factory: TargetFactory) -> None:
    """The store refuses what arrives after the successor has begun."""
    async with held_network(pair.port) as network:
        pair.port = network.port
        await pair.attach("127.0.0.1")
        network.hold(OLD[:64])
        thread = start_write(pair.state, OLD)
        async with asyncio.timeout(PATIENCE_S):
            await network.keeps_something()
        pair.near.kill()
        await asyncio.to_thread(thread.join)
        async with await Client.connect(target_factory.start("next", polled=True).rpc_socket) as rpc:
            pair.engine.rpc = rpc
            assert (await pair.engine.reconcile()).problems == ()
            await asyncio.to_thread(write, pair.state, NEW)
            await network.release()
            found = bytearray(4096)

            def read() -> None:
                with initiator.connect(pair.state.target_dir("x")) as host, host.queue(4, timeout=PATIENCE_S) as queue:
                    for _ in range(50):
                        queue.read(host.namespace(1), 0, found).wait()
                        assert found == NEW, "a write of the dead target has landed"

            await asyncio.to_thread(read)
