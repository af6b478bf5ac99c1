"""A target is stopped while it writes to a remote, its reservation is taken by force, and it is woken again."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import threading
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from remote_pair import NQN, Pair, open_pair

from nvmuser import initiator
from nvmuser.errors import NvmeStatusError
from nvmuser.hostfs import host_identity
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client
from nvmuser.rpc.methods import reservations
from nvmuser.rpc.methods.reservations import Completion, Report

BLOCKS, BLOCK = 32, 4096
ROUNDS = 50
RESERVATION_CONFLICT = (0, 0x83)


def tagged(who: int, number: int) -> bytes:
    return struct.pack("<II", who, number) * (BLOCK // 8)


class Writer:
    """Writes its tag to all blocks, again and again, until it is refused."""

    def __init__(self, directory: Path, who: int) -> None:
        self._directory = directory
        self._who = who
        self.begun = threading.Event()
        self.refusal: NvmeStatusError | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with initiator.connect(self._directory) as host, host.queue(BLOCKS, timeout=120) as queue:
            space, number = host.namespace(1), 0
            while self.refusal is None:
                number += 1
                data = tagged(self._who, number)
                requests = [queue.write(space, block * BLOCK // 512, data) for block in range(BLOCKS)]
                for request in requests:
                    try:
                        request.wait()
                    except NvmeStatusError as error:
                        self.refusal = error
                self.begun.set()


def write_all(directory: Path, who: int) -> None:
    with initiator.connect(directory) as host, host.queue(BLOCKS, timeout=60) as queue:
        space = host.namespace(1)
        for block in range(BLOCKS):
            queue.write(space, block * BLOCK // 512, tagged(who, 0)).wait()


def read_all(directory: Path) -> set[bytes]:
    found = set()
    with initiator.connect(directory) as host, host.queue(BLOCKS, timeout=60) as queue:
        space, data = host.namespace(1), bytearray(BLOCK)
        for block in range(BLOCKS):
            queue.read(space, block * BLOCK // 512, data).wait()
            found.add(bytes(data))
    return found


async def holder_key(rpc: Client) -> int:
    request = reservations.report("far", 1)
    report = Report.parse(Completion.parse(await rpc.call(request.method, request.params)).data)
    assert report.holder
    return report.holder.key


async def rounds(pair: Pair, other: Engine, there: StateDir, target: BareTarget, count: int) -> None:
    """Each takes it from the other in turn, while that is stopped."""
    remote = Remote("far", nqn=NQN, paths=(RemotePath("127.0.0.1", pair.port),))
    disk = Volume("disk", "remote", remote="far", remote_nsid=1)
    assert pair.engine.rpc
    first = Volume("disk", "remote", remote="far", remote_nsid=1, take_over=f"{await holder_key(pair.engine.rpc):#x}")
    await other.change(Change(create=(remote, first, Controller("y", (Namespace("disk"),)))))
    sides = [
        (pair.engine, pair.state.target_dir("x"), pair.near.process.pid),
        (other, there.target_dir("y"), target.process.pid),
    ]
    for number in range(count):
        (taker, here, _), (holder, away, pid) = sides
        assert holder.rpc
        assert taker.rpc
        key = await holder_key(holder.rpc)
        writer = Writer(away, 2 * number)
        assert await asyncio.to_thread(writer.begun.wait, 60)
        os.kill(pid, signal.SIGSTOP)
        try:
            before = taker.desired().get(disk.key)
            assert isinstance(before, Volume)
            change = Change(update=(Volume.from_json(before.to_json() | {"take_over": f"{key:#x}"}),))
            assert (await taker.change(change)).problems == ()
            await asyncio.to_thread(write_all, here, 2 * number + 1)
        finally:
            os.kill(pid, signal.SIGCONT)
        await asyncio.to_thread(writer.thread.join)
        assert writer.refusal
        assert (writer.refusal.status_type, writer.refusal.code) == RESERVATION_CONFLICT
        assert await asyncio.to_thread(read_all, here) == {tagged(2 * number + 1, 0)}
        assert [problem.object for problem in (await holder.reconcile()).problems] == [Key("volume", "disk")]
        sides.reverse()


@pytest.mark.matrix
@pytest.mark.parametrize("count", [2, ROUNDS])
async def test_none_of_its_writes_lands(tmp_path: Path, target_factory: TargetFactory, count: int) -> None:
    async with open_pair(tmp_path, target_factory) as pair:
        there = StateDir(tmp_path / "b")
        for state in (pair.state, there):
            await pair.admit(host_identity.load(state).nqn)
        await pair.listen()
        await pair.attach("127.0.0.1")
        target = target_factory.start("second", polled=True)
        async with await Client.connect(target.rpc_socket) as rpc:
            other = Engine(there, rpc)
            await rounds(pair, other, there, target, count)
            other.close()
