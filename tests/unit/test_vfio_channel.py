"""The channel between supervisor and endpoint."""

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from vfio_fds import descriptors_open, eventfd, memory, until

from nvmf_vfio.keeper import channel as channel_module
from nvmf_vfio.keeper.channel import MAX_DESCRIPTORS, Channel, HeldFds
from nvmf_vfio.protocol.descriptors import Descriptor, close_all


class End:
    """One end, and what it has heard."""

    def __init__(self, sock: socket.socket) -> None:
        self.heard: list[dict[str, Any]] = []
        self.descriptors: list[Descriptor] = []
        self.ends = 0
        self.channel = Channel(sock, self._hear, self._end)

    def _hear(self, message: dict[str, Any], descriptors: list[Descriptor]) -> None:
        self.heard.append(message)
        self.descriptors += descriptors

    def _end(self) -> None:
        self.ends += 1

    def close(self) -> None:
        self.channel.close()
        close_all(self.descriptors)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    before = descriptors_open()
    left, right = (End(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield left, right
    left.close()
    right.close()
    assert descriptors_open() == before


async def test_messages_arrive_in_order_with_their_descriptors(ends: tuple[End, End]) -> None:
    left, right = ends
    with memory() as held, eventfd() as event:
        left.channel.send("put", [held], name="a")
        left.channel.send("put", [event, held], name="b")
        left.channel.send("drop", name="a")
        await until(lambda: len(right.heard) == 3)
        assert [message["op"] for message in right.heard] == ["put", "put", "drop"]
        files = [os.fstat(one.fileno()).st_ino for one in right.descriptors]
        assert files[0] == files[2] == os.fstat(held.fileno()).st_ino


async def test_a_reader_that_is_busy_gets_everything_later(ends: tuple[End, End]) -> None:
    left, right = ends
    for number in range(2000):
        left.channel.send("serve", controllers=["x" * 500], number=number)
    await until(lambda: len(right.heard) == 2000)
    assert [message["number"] for message in right.heard] == list(range(2000))


async def test_a_reader_that_never_reads_counts_as_gone(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = ends
    monkeypatch.setattr(channel_module, "_MAX_QUEUED", 50)
    right.channel._loop.remove_reader(right.channel._socket)
    with eventfd() as held:
        for _ in range(5000):
            left.channel.send("put", [held], name="x" * 1000)
    await until(lambda: left.ends == 1)
    left.channel.send("drop", name="x")


async def test_the_end_is_told_once(ends: tuple[End, End]) -> None:
    left, right = ends
    right.channel.close()
    await until(lambda: left.ends)
    left.channel.send("drop", name="x")
    await asyncio.sleep(0)
    assert (left.ends, right.ends) == (1, 0)


async def test_more_descriptors_than_fit_end_the_channel() -> None:
    before = descriptors_open()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = End(ours)
    with eventfd() as held:
        numbers = array.array("i", [held.fileno()] * (MAX_DESCRIPTORS + 1))
        theirs.sendmsg([b'{"op": "kept"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        await until(lambda: end.ends)
    theirs.close()
    end.close()
    assert end.heard == []
    assert descriptors_open() == before


async def test_a_keeper_gives_everything_back(ends: tuple[End, End]) -> None:
    left, right = ends
    fds = HeldFds()
    for number in range(MAX_DESCRIPTORS + 5):
        fds.push(f"a/1/{number:03}", eventfd())
    fds.restore(left.channel)
    await until(lambda: len(right.heard) == 2)
    names = [name for message in right.heard for name in message["names"]]
    assert names == [f"a/1/{number:03}" for number in range(MAX_DESCRIPTORS + 5)]
    assert len(right.descriptors) == len(names) == len(fds)
    fds.close()
