"""Other names for what a real target serves: hosts go on, targets come and go, and former names are used again."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory

from nvmuser import initiator
from nvmuser.errors import ConflictError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Namespace, Pool, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.renaming import rename
from nvmuser.rpc import Client
from nvmuser.supervisor import control, daemon
from nvmuser.supervisor.spdk import Options

MIB = 1 << 20
NQN = "nqn.2026-11.org.example:far"
BLOCK = 128 * 1024


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """With a short path, for the sockets in it."""
    return StateDir(tmp_path_factory.mktemp("s"))


@pytest.fixture
async def store(target_factory: TargetFactory) -> AsyncIterator[RemotePath]:
    """Another target, which admits all."""
    far = target_factory.start("far")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
    async with await Client.connect(far.rpc_socket) as rpc:
        await rpc.call("nvmf_create_transport", {"trtype": "TCP"})
        await rpc.call("bdev_malloc_create", {"name": "m", "num_blocks": 65536, "block_size": 512})
        await rpc.call("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "serial_number": "FAR"})
        await rpc.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "m"}})
        await rpc.call("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": where})
        yield RemotePath("127.0.0.1", port)


@asynccontextmanager
async def engine_on(target: BareTarget, state: StateDir) -> AsyncIterator[Engine]:
    async with await Client.connect(target.rpc_socket) as rpc:
        engine = Engine(state, rpc)
        yield engine
        engine.close()


async def agrees(engine: Engine, calls: int | None = 0) -> None:
    outcome = await engine.reconcile()
    assert (outcome.problems, outcome.foreign) == ((), ())
    assert calls is None or outcome.calls == calls
    status = await engine.status()
    assert (status.drifted, status.missing, status.foreign) == ((), (), ())


def objects(path: RemotePath, size: int = 64) -> tuple[AnyObject, ...]:
    return (
        Volume("disk", size=256 * MIB),
        Pool("p", base="disk", cluster_size=MIB),
        Volume("l", "lvol", pool="p", size=8 * MIB),
        Volume("s", "lvol", pool="p", snapshot_of="l"),
        Volume("c", "lvol", pool="p", clone_of="s"),
        Volume("a", size=size * MIB),
        Volume("b", size=size * MIB),
        Volume("m", "raid1", members=("a", "b")),
        Volume("slow", "delay", base="m", latency_us=1),
        Remote("r", nqn=NQN, paths=(path,)),
        Volume("far", "remote", remote="r", remote_nsid=1),
        Volume("bad", "error", base="far"),
        Controller("x", tuple(map(Namespace, ("l", "c", "slow", "bad")))),
    )


class Host:
    """Writes to every namespace of a controller until it is told to stop, and checks what it has written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop = False
        self._round = threading.Semaphore(0)
        self.last: dict[int, bytes] = {}

    async def __aenter__(self) -> Host:
        self._task = asyncio.ensure_future(asyncio.to_thread(self._write))
        await self.more()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop = True
        await self._task

    async def more(self) -> None:
        """Until it has written once more to each."""
        while self._round.acquire(blocking=False):
            pass
        for _ in range(2):  # of which the first may have begun before
            assert await asyncio.to_thread(self._round.acquire, timeout=60)

    def _write(self) -> None:
        with initiator.connect(self._directory) as host, host.queue(4, timeout=20) as queue:
            for number in itertools.count():
                if self._stop and number:
                    return
                for nsid in range(1, 5):
                    data, back = os.urandom(BLOCK), bytearray(BLOCK)
                    queue.write(host.namespace(nsid), 0, data).wait()
                    queue.read(host.namespace(nsid), 0, back).wait()
                    assert back == data
                    self.last[nsid] = data
                    queue.flush(host.namespace(nsid)).wait()
                self._round.release()


def contents(directory: Path) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    with initiator.connect(directory) as host, host.queue(4, timeout=20) as queue:
        for nsid in range(1, 5):
            back = bytearray(BLOCK)
            queue.read(host.namespace(nsid), 0, back).wait()
            found[nsid] = bytes(back)
    return found


async def test_everything_is_renamed_while_a_host_writes(
    state: StateDir, store: RemotePath, target_factory: TargetFactory
) -> None:
    target = target_factory.start("near", polled=True)
    async with engine_on(target, state) as engine:
        outcome = await engine.change(Change(create=objects(store)))
        assert outcome.problems == ()
        async with Host(state.target_dir("x")) as host:
            for one in objects(store):
                if not isinstance(one, Controller):
                    outcome = await rename(state, engine, one.key, f"{one.name}-new")
                    assert (outcome.calls, outcome.problems, outcome.pending) == (0, (), False)
                    await host.more()
        await agrees(engine)
        # What has the former names, in the places that are free, is something else.
        more = tuple(one for one in objects(store, 32) if one.name not in ("x", "r", "far", "bad"))
        second = Controller("y", tuple(map(Namespace, ("l", "c", "slow"))))
        outcome = await engine.change(Change(create=(*more, second)))
        assert (outcome.problems, outcome.foreign) == ((), ())
        await agrees(engine)
        assert contents(state.target_dir("x")) == host.last
        # Growing, limits and the end of one reach the right ones.
        grown = engine.desired().get(Key("volume", "l-new"))
        assert isinstance(grown, Volume)
        wanted = Volume.from_json(grown.to_json() | {"size": 16 * MIB, "limits": {"iops": 5000}})
        assert (await engine.change(Change(update=(wanted,)))).problems == ()
        gone = tuple(one.key for one in (*more, second))
        assert (await engine.change(Change(delete=gone, wipe=True))).problems == ()
        await agrees(engine)
    target.kill()
    async with engine_on(target_factory.start("next", polled=True), state) as engine:
        await agrees(engine, None)
        await agrees(engine)
        assert contents(state.target_dir("x")) == host.last
        assert (await rename(state, engine, Key("volume", "a-new"), "a")).problems == ()
        left = tuple(one.key for one in engine.desired().wanted())
        assert (await engine.change(Change(delete=left, wipe=True))).problems == ()
        assert engine.desired().wanted() == []
    assert list(state.volumes.iterdir()) == []


async def test_a_controller_moves_to_another_socket(state: StateDir) -> None:
    async with daemon.running(state, Options(profile="eco", hugepages=False)):
        await control.submit(state, Change(create=(Volume("a", size=MIB), Controller("x", (Namespace("a"),)))))
        with initiator.connect(state.guest_dir("x")) as host:
            serial = host.identify().serial
            with pytest.raises(ConflictError, match="controller x serves a guest"):
                await control.rename(state, Key("controller", "x"), "y")
            await control.rename(state, Key("volume", "a"), "b")
        outcome = await control.rename(state, Key("controller", "x"), "y")
        assert (outcome.problems, outcome.foreign) == ((), ())
        assert not state.target_dir("x").exists()
        assert not state.socket("x").exists()
        drift = await control.ask(state, "drift")
        assert (drift["drifted"], drift["missing"], drift["foreign"]) == ([], [], [])
        await control.submit(state, Change(create=(Controller("x"),)))
        with initiator.connect(state.guest_dir("y")) as host:
            assert host.identify().serial == serial
        with initiator.connect(state.guest_dir("x")) as host:
            assert host.identify().serial != serial
