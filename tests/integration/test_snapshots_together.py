"""Snapshots of all volumes of a controller at one moment, while a host writes to one after the other.

That a guest does not notice: tests/guest/test_snapshots_together.py.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bare_target import BareTarget

from nvmuser import initiator
from nvmuser.errors import ConflictError, HostConnectionError, TargetError, TargetNotRunning, UsageError
from nvmuser.model.change import Change
from nvmuser.model.objects import AnyObject, Controller, Namespace, Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.at_once import snapshot_together
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client
from nvmuser.supervisor import control, daemon
from nvmuser.supervisor.spdk import Options

MIB = 1 << 20
NAMES = ("one", "two", "three")
OBJECTS: tuple[AnyObject, ...] = (
    Volume("disk", size=128 * MIB),
    Pool("p", base="disk", cluster_size=MIB),
    *(Volume(name, "lvol", pool="p", size=4 * MIB) for name in NAMES),
    Controller("x", tuple(map(Namespace, NAMES))),
)


@pytest.fixture
async def engine(tmp_path: Path, spdk_target: BareTarget) -> AsyncIterator[Engine]:
    """Controller x shows three volumes of a pool."""
    async with await Client.connect(spdk_target.rpc_socket) as rpc:
        engine = Engine(StateDir(tmp_path / "st"), rpc)
        assert (await engine.change(Change(create=OBJECTS))).problems == ()
        yield engine
        engine.close()


class Writer:
    """A host that writes ever higher numbers, each to every namespace in turn, until it is told to stop.

    :ivar written: the last one that is in all of them; one more may be in some.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop = False
        self._round = threading.Semaphore(0)
        self.written = 0

    async def __aenter__(self) -> Writer:
        self._task = asyncio.ensure_future(asyncio.to_thread(self._write))
        for _ in range(10):
            await self.more()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop = True
        await self._task

    async def more(self) -> None:
        """Wait for another number."""
        waiting = asyncio.ensure_future(asyncio.to_thread(self._round.acquire, timeout=30))
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        assert not self._task.done(), self._task.exception()
        assert waiting.result()

    async def lost(self) -> None:
        """Its controller is gone."""
        with pytest.raises(HostConnectionError):
            await self.__aexit__()

    def _write(self) -> None:
        with initiator.connect(self._directory) as host, host.queue(4, timeout=30) as queue:
            namespaces = host.namespaces()
            while not self._stop:
                for namespace in namespaces:
                    queue.write(namespace, 0, (self.written + 1).to_bytes(512, "little")).wait()
                self.written += 1
                self._round.release()


async def numbers(engine: Engine, directory: Path, names: tuple[str, ...]) -> list[int]:
    """What volumes begin with."""
    shown = Controller("shown", tuple(map(Namespace, names)))
    assert (await engine.change(Change(create=(shown,)))).problems == ()

    def read() -> list[int]:
        found = []
        with initiator.connect(directory) as host, host.queue(4, timeout=30) as queue:
            for namespace in host.namespaces():
                block = bytearray(512)
                queue.read(namespace, 0, block).wait()
                found.append(int.from_bytes(block, "little"))
        return found

    try:
        return await asyncio.to_thread(read)
    finally:
        await engine.change(Change(delete=(shown.key,)))


async def test_no_write_without_the_one_before(engine: Engine, tmp_path: Path) -> None:
    """Each snapshot has all that its host was told was written, and of what it was not told, no gap."""
    state = StateDir(tmp_path / "st")
    for time in range(5):
        writer = Writer(state.target_dir("x"))
        await writer.__aenter__()
        outcome = await snapshot_together(engine, "x", f"s{time}")
        assert [one["name"] for one in outcome.objects] == [f"{name}-s{time}" for name in NAMES]
        assert (outcome.problems, outcome.pending) == ((), False)
        found = await numbers(engine, state.target_dir("shown"), tuple(f"{name}-s{time}" for name in NAMES))
        assert found == sorted(found, reverse=True)
        written = writer.written
        await writer.lost()
        assert set(found) <= {written, written + 1}
    assert (await engine.reconcile()).calls == 0


async def test_a_target_that_ends_meanwhile(
    engine: Engine, spdk_target: BareTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one would make them at another moment."""
    change = engine.change

    async def dying(wanted: Change) -> object:
        monkeypatch.setattr(engine, "change", change)
        spdk_target.kill()
        return await change(wanted)

    monkeypatch.setattr(engine, "change", dying)
    with pytest.raises(TargetError, match="no snapshots"):
        await snapshot_together(engine, "x", "s")
    assert not [volume for volume in engine.desired().volumes() if volume.snapshot_of]


@pytest.fixture
async def state(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StateDir]:
    """Of a supervisor; with a short path, for the sockets in it."""
    state = StateDir(tmp_path_factory.mktemp("s"))
    async with daemon.running(state, Options(profile="eco", hugepages=False)):
        assert (await control.submit(state, Change(create=OBJECTS))).problems == ()
        yield state


async def test_what_is_refused_is_not_noticed(state: StateDir) -> None:
    other = (Volume("file", size=4 * MIB), Controller("y", (Namespace("file"),)))
    more = (*other, Volume("two-s", "lvol", pool="p", snapshot_of="two"))
    await control.submit(state, Change(create=more))
    before = control.load(state).entries.keys()
    async with Writer(state.guest_dir("x")) as writer:
        with pytest.raises(ConflictError, match="two-s"):
            await control.snapshot_together(state, "x", "s")
        with pytest.raises(UsageError, match="only volumes in a pool"):
            await control.snapshot_together(state, "y", "s")
        await writer.more()
    async with Writer(state.target_dir("x")) as writer:
        with pytest.raises(ConflictError, match="without the endpoint"):
            await control.snapshot_together(state, "x", "t")
        await writer.more()
    assert control.load(state).entries.keys() == before
    outcome = await control.snapshot_together(state, "x", "u")
    assert [one["name"] for one in outcome.objects] == [f"{name}-u" for name in NAMES]
    assert (await control.ask(state, "drift"))["in_sync"]


async def test_without_a_target(tmp_path: Path) -> None:
    with pytest.raises(TargetNotRunning):
        await control.snapshot_together(StateDir(tmp_path), "x", "s")
