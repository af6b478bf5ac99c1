"""Polled and awaited queues: large transfers, more than a queue holds, aborts, deadlines, closing."""

from __future__ import annotations

import asyncio
import os

import numpy as np
import pytest
from host_world import MIB

from nvmuser import initiator
from nvmuser.errors import HostError, HostTimeoutError, NvmeStatusError, UsageError


def test_larger_than_one_transfer(data: initiator.Controller) -> None:
    namespace, size = data.namespace(1), 2 * MIB
    assert size > data.identify().max_transfer
    expected = os.urandom(size)
    back = initiator.allocate(size)
    with data.queue(2, timeout=10) as queue:
        queue.write(namespace, 0, expected).wait()
        queue.read(namespace, 0, back).wait()
    assert back.view == expected


def large_transfers() -> tuple[list[tuple[int, initiator.Memory]], list[tuple[int, initiator.Memory]]]:
    """What fills the volume, and as much memory for what is read back. Each of 2 MiB is 17 of the driver's requests."""
    memory, size = initiator.allocate(64 * MIB), 2 * MIB
    np.frombuffer(memory.view, np.uint64)[:] = np.arange(memory.size // 8)
    there, back = (
        [(n * size // 4096, area[n * size : (n + 1) * size]) for n in range(32)]
        for area in (memory, initiator.allocate(memory.size))
    )
    return there, back


def test_many_large_transfers_polled(data: initiator.Controller) -> None:
    namespace = data.namespace(1)
    there, back = large_transfers()
    with data.queue(64, timeout=60) as queue:
        queue.wait([queue.write(namespace, lba, part) for lba, part in there * 2])
        queue.wait([queue.read(namespace, lba, part) for lba, part in back * 2])
    assert all(part.view == copy.view for (_, part), (_, copy) in zip(there, back, strict=True))


async def test_many_large_transfers_awaited(data: initiator.Controller) -> None:
    namespace, small = data.namespace(1), bytearray(4096)
    there, back = large_transfers()
    async with asyncio.timeout(60), data.async_queue(64) as queue:
        await asyncio.gather(*(queue.write(namespace, lba, part) for lba, part in there * 2))
        reads = [queue.read(namespace, lba, part) for lba, part in back * 2]
        await asyncio.gather(*reads, queue.read(namespace, 1, small))
    assert all(part.view == copy.view for (_, part), (_, copy) in zip(there, back, strict=True))
    assert small == there[0][1].view[4096:8192]


async def test_more_than_a_queue_holds(data: initiator.Controller) -> None:
    namespace = data.namespace(1)
    contents = [bytes([n]) * 4096 for n in range(200)]
    async with data.async_queue(16, timeout=10) as queue:
        await asyncio.gather(*(queue.write(namespace, n, content) for n, content in enumerate(contents)))
        back = [bytearray(4096) for _ in contents]
        await asyncio.gather(*(queue.read(namespace, n, buffer) for n, buffer in enumerate(back)))
        assert back == contents
        outcomes = await asyncio.gather(
            *(queue.read(namespace, namespace.blocks - n, bytearray(4096)) for n in range(3)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [NvmeStatusError, type(None), type(None)]


async def test_an_invalid_command_fails_alone(data: initiator.Controller) -> None:
    """Also when it had to wait for a slot."""
    namespace, buffer = data.namespace(1), bytearray(4096)
    async with asyncio.timeout(20), data.async_queue(2) as queue:
        lbas = (0, 1, -1, 2, 1 << 64, 3)
        outcomes = await asyncio.gather(*(queue.read(namespace, n, buffer) for n in lbas), return_exceptions=True)
        for lba, outcome in zip(lbas, outcomes, strict=True):
            assert isinstance(outcome, type(None) if lba in range(4) else UsageError)


async def test_a_closed_queue_says_so(slow: initiator.Controller) -> None:
    namespace = slow.namespace(1)
    async with slow.async_queue(2) as queue:
        reads = [queue.read(namespace, 0, bytearray(512)) for _ in range(3)]
    async with asyncio.timeout(10):
        for outcome in await asyncio.gather(*reads, return_exceptions=True):
            assert "the queue was closed" in str(outcome)
        with pytest.raises(HostError, match="the queue is closed"):
            await queue.read(namespace, 0, bytearray(512))


def test_abort(slow: initiator.Controller) -> None:
    with slow.queue(4, timeout=10) as queue:
        requests = [queue.read(slow.namespace(1), n, bytearray(512)) for n in range(2)]
        with pytest.raises(HostError, match="still in flight"):
            requests[0].result()
        requests[0].abort()
        with pytest.raises(NvmeStatusError, match="ABORTED - BY REQUEST"):
            requests[0].wait()
        assert not requests[1].done
        assert queue.in_flight == 1
    with pytest.raises(HostError, match="the queue was closed"):
        requests[1].result()


def test_deadline_polled(slow: initiator.Controller) -> None:
    with slow.queue(4, timeout=0.05) as queue:
        request = queue.read(slow.namespace(1), 0, bytearray(512))
        with pytest.raises(HostTimeoutError, match=r"READ: no answer within 0\.05 s"):
            request.wait()
        with pytest.raises(NvmeStatusError, match="ABORTED - BY REQUEST"):
            request.wait(10)
        assert queue.in_flight == 0


async def test_deadline_and_cancellation_awaited(slow: initiator.Controller) -> None:
    namespace = slow.namespace(1)
    async with slow.async_queue(4, timeout=0.05) as queue:
        with pytest.raises(HostTimeoutError, match=r"READ: no answer within 0\.05 s"):
            await queue.read(namespace, 0, bytearray(512))
    async with asyncio.timeout(20), slow.async_queue(4) as queue:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.read(namespace, 0, bytearray(512)), 0.05)
        await queue.drain()
        assert queue.in_flight == 0
        waiting = queue.read(namespace, 0, bytearray(512))
    with pytest.raises(HostError, match="the queue was closed"):
        await waiting
