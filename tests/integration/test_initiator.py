"""The NVMe host against a real target: data, errors by their names, aborts, deadlines, and a target that dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bare_target import BareTarget, TargetFactory

from nvmuser import initiator
from nvmuser.errors import HostConnectionError, HostError, HostTimeoutError, NotFoundError, NvmeStatusError, UsageError
from nvmuser.initiator.memory import transfer
from nvmuser.rpc import Client, methods
from nvmuser.rpc.methods import Request

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
EUI64 = "0F2D9A525A3E4A9A"
SLOW_US = 30_000_000
"""Longer than any test waits: only an abort ends it."""


def rpc(target: BareTarget, *requests: Request) -> None:
    async def call() -> None:
        async with await Client.connect(target.rpc_socket) as client:
            for request in requests:
                await client.call(request.method, dict(request.params))

    asyncio.run(call())


def uuid(number: int) -> str:
    return f"0f2d9a52-5a3e-4a9a-9a3f-1c5a35f5a00{number}"


def nguid(number: int) -> str:
    return uuid(number).replace("-", "")


def slow_volume() -> list[Request]:
    null = methods.null_create("base", 16 * MIB, 512, uuid(8))
    return [null, methods.delay_create("slow", "base", SLOW_US, uuid(9))]


def controller(directory: Path, name: str, *bdevs: str) -> list[Request]:
    """The calls that make a controller with these namespaces, and its directory."""
    (directory / name).mkdir()
    nqn = f"nqn.2026-11.org.nvmuser:{name}"
    return [
        methods.create_subsystem(nqn, name.upper(), 1, 8),
        *(
            methods.add_namespace(nqn, n, bdev, uuid=uuid(n), nguid=nguid(n), eui64=EUI64)
            for n, bdev in enumerate(bdevs, 1)
        ),
        methods.add_listener(nqn, str(directory / name)),
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BareTarget, Path]]:
    """A target that sleeps, and therefore wants doorbells: `data` (a file, and null), `slow`."""
    directory = tmp_path_factory.mktemp("host")
    backing = directory / "backing"
    with backing.open("wb") as file:
        file.truncate(64 * MIB)
    factory = TargetFactory(directory)
    try:
        target = factory.start()
        rpc(
            target,
            methods.create_transport(),
            methods.aio_create("a0", str(backing), 4096, uuid(1)),
            methods.null_create("n0", 16 * MIB, 512, uuid(2)),
            *slow_volume(),
            *controller(directory, "data", "a0", "n0"),
            *controller(directory, "slow", "slow"),
        )
        yield target, directory
        # Ending in good order, it would wait for what the slow volume still has.
        target.kill()
    finally:
        factory.end()


@pytest.fixture
def data(served: tuple[BareTarget, Path]) -> Iterator[initiator.Controller]:
    with initiator.connect(served[1] / "data") as connected:
        yield connected


@pytest.fixture
def slow(served: tuple[BareTarget, Path]) -> Iterator[initiator.Controller]:
    with initiator.connect(served[1] / "slow") as connected:
        yield connected


def test_identify(data: initiator.Controller) -> None:
    info = data.identify()
    assert (info.serial, info.model, info.nqn) == ("DATA", "nvmuser", "nqn.2026-11.org.nvmuser:data")
    assert info.controller_id == 1
    assert info.write_zeroes
    assert info.shadow_doorbells
    first, second = data.namespaces()
    assert (first.id, first.block_size, first.size) == (1, 4096, 64 * MIB)
    assert (second.id, second.block_size, second.size) == (2, 512, 16 * MIB)
    assert str(first.uuid) == uuid(1)
    assert first.nguid == bytes.fromhex(nguid(1))
    assert first.eui64 == bytes.fromhex(EUI64)
    with pytest.raises(NotFoundError):
        data.namespace(3)


def test_every_kind_of_buffer(data: initiator.Controller) -> None:
    namespace = data.namespace(1)
    expected = os.urandom(64 * 4096)
    with data.queue(4, timeout=10) as queue:
        queue.write(namespace, 100, expected).wait()
        memory, plain = initiator.allocate(len(expected)), bytearray(len(expected))
        array = np.zeros((64, 512), np.uint64)
        dma_array = np.frombuffer(initiator.allocate(len(expected)).view, np.uint64)
        odd = memoryview(bytearray(len(expected) + 1))[1:]
        for buffer in (memory, plain, array, dma_array, odd):
            queue.read(namespace, 100, buffer).wait()
        assert bytes(memory) == plain == array.tobytes() == dma_array.tobytes() == odd == expected
        half = memory[4096:8192]
        half.view[:] = b"\x5a" * 4096
        queue.write(namespace, 7, half, fua=True).wait()
        queue.read(namespace, 7, plain).wait()
        assert plain[:4096] == memory.view[4096:8192] == b"\x5a" * 4096


def test_dma_memory_is_not_copied(data: initiator.Controller) -> None:
    memory = initiator.allocate(8192)
    array = np.frombuffer(memory.view, np.uint32)
    for buffer in (memory, memory[4:], memory.view[8:], array[1:]):
        assert transfer(buffer, reading=True).into is None
    assert transfer(array[1:], reading=True).address == memory.address + 4
    for buffer in (memory[1:], bytearray(4096), np.zeros(4096, np.uint8)):
        assert transfer(buffer, reading=True).into is not None


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
        [(n * size // 4096, one[n * size : (n + 1) * size]) for n in range(32)]
        for one in (memory, initiator.allocate(memory.size))
    )
    return there, back


def test_many_large_transfers_polled(data: initiator.Controller) -> None:
    namespace = data.namespace(1)
    there, back = large_transfers()
    with data.queue(64, timeout=60) as queue:
        queue.wait([queue.write(namespace, lba, part) for lba, part in there * 2])
        queue.wait([queue.read(namespace, lba, part) for lba, part in back * 2])
    assert all(one.view == other.view for (_, one), (_, other) in zip(there, back, strict=True))


async def test_many_large_transfers_awaited(data: initiator.Controller) -> None:
    namespace, small = data.namespace(1), bytearray(4096)
    there, back = large_transfers()
    async with asyncio.timeout(60), data.async_queue(64) as queue:
        await asyncio.gather(*(queue.write(namespace, lba, part) for lba, part in there * 2))
        reads = [queue.read(namespace, lba, part) for lba, part in back * 2]
        await asyncio.gather(*reads, queue.read(namespace, 1, small))
    assert all(one.view == other.view for (_, one), (_, other) in zip(there, back, strict=True))
    assert small == there[0][1].view[4096:8192]


def test_measuring_large_transfers(data: initiator.Controller) -> None:
    result = initiator.measure(data, data.namespace(2), depth=64, size=MIB, seconds=1)
    assert (result.errors, result.size) == (0, MIB)


def test_commands_without_data(data: initiator.Controller) -> None:
    namespace = data.namespace(1)
    block = bytearray(4096)
    with data.queue(8, timeout=10) as queue:
        queue.wait([queue.write(namespace, n, b"\xff" * 4096) for n in range(8)])
        queue.flush(namespace).wait()
        queue.write_zeroes(namespace, 0, 2).wait()
        queue.deallocate(namespace, [(2, 1), (4, 2)]).wait()
        for lba, filled in enumerate((False, False, False, True, False, False, True, True)):
            queue.read(namespace, lba, block).wait()
            assert block == (b"\xff" if filled else b"\0") * 4096, f"block {lba}"
        queue.compare(namespace, 7, b"\xff" * 4096).wait()
        with pytest.raises(NvmeStatusError) as raised:
            queue.compare(namespace, 7, b"\xfe" * 4096).wait()
        assert (raised.value.type_name, raised.value.name) == ("MEDIA ERROR", "COMPARE FAILURE")


def test_errors(data: initiator.Controller, tmp_path: Path) -> None:
    namespace = data.namespace(1)
    with data.queue(2, timeout=10) as queue:
        with pytest.raises(NvmeStatusError, match="LBA OUT OF RANGE") as raised:
            queue.read(namespace, namespace.blocks, bytearray(4096)).wait()
        assert (raised.value.status_type, raised.value.code, raised.value.type_name) == (0, 0x80, "GENERIC")
        with pytest.raises(UsageError, match="whole number of blocks of 4096"):
            queue.read(namespace, 0, bytearray(512))
        with pytest.raises(UsageError, match="read-only"):
            queue.read(namespace, 0, b"\0" * 4096)
        with pytest.raises(UsageError, match="out of any range"):
            queue.read(namespace, -1, bytearray(4096))
        for empty in (initiator.allocate(4096)[8:8], bytearray()):
            with pytest.raises(UsageError, match="no bytes"):
                queue.write(namespace, 0, empty)
        with pytest.raises(UsageError, match="one piece"):
            queue.read(namespace, 0, np.zeros((4096, 2), np.uint8)[:, 0])
        queue.read(namespace, 0, bytearray(4096)).wait()
        assert queue.in_flight == 0
    with pytest.raises(HostError, match="closed"):
        queue.read(namespace, 0, bytearray(4096))
    with pytest.raises(HostConnectionError, match="no socket"):
        initiator.connect(tmp_path)
    with pytest.raises(HostError, match="once in a process"):
        initiator.initialise()


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


async def test_what_cannot_be_meant_fails_alone(data: initiator.Controller) -> None:
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


def test_a_namespace_that_grows(served: tuple[BareTarget, Path], data: initiator.Controller) -> None:
    before = data.namespace(2).size
    rpc(served[0], methods.null_resize("n0", before + MIB))
    deadline = time.monotonic() + 10
    while data.namespaces()[1].size != before + MIB:
        assert time.monotonic() < deadline, "the controller's event was not seen"


def test_a_namespace_belongs_to_its_connection(served: tuple[BareTarget, Path]) -> None:
    """The driver frees it with the controller: after a new connection, an old one would be used after that."""
    with initiator.connect(served[1] / "data") as first:
        old = first.namespace(1)
    with initiator.connect(served[1] / "data") as second, second.queue(2, timeout=10) as queue:
        assert old == second.namespace(1)
        with pytest.raises(UsageError, match="namespace 1 is another connection's"):
            queue.read(old, 0, bytearray(4096))
        with pytest.raises(UsageError, match="namespace 1 is another connection's"):
            initiator.measure(second, old, seconds=0.01)
        for _ in range(3):
            queue.read(second.namespace(1), 0, bytearray(4096)).wait()
    with pytest.raises(HostError, match="closed"):
        initiator.measure(first, old)


@pytest.mark.parametrize("pattern", ["read", "randread", "randrw", "randwrite"])
def test_the_measuring_loop(data: initiator.Controller, pattern: str) -> None:
    result = initiator.measure(data, data.namespace(1), pattern=pattern, depth=16, seconds=0.1, warmup=0.01)
    assert result.errors == 0
    assert result.ios == sum(count for _, count in result.histogram) > 0
    assert result.min_us <= result.percentile(50) <= result.percentile(99.9)
    assert result.min_us < result.mean_us < result.max_us
    assert result.to_json()["iops"] == result.iops > 0


def test_measuring_what_cannot_be_meant(data: initiator.Controller) -> None:
    for wrong in ({"pattern": "sideways"}, {"depth": 0}, {"size": 100}):
        with pytest.raises(UsageError):
            initiator.measure(data, data.namespace(1), **wrong)


def test_the_sample(served: tuple[BareTarget, Path]) -> None:
    argv = [sys.executable, str(ROOT / "samples/nvme_host.py"), str(served[1] / "data")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "read back what was written: True" in done.stdout
    assert "behind the end: LBA OUT OF RANGE" in done.stdout
    assert "256 reads awaited" in done.stdout
    failed = subprocess.run([*argv[:2], "/nowhere"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1


def test_mapped_doorbells(target_factory: TargetFactory, tmp_path: Path) -> None:
    """A target whose BAR0 can be mapped: neither messages nor shadow doorbells."""
    target = target_factory.start(polled=True)
    null = methods.null_create("n0", 16 * MIB, 512, uuid(2))
    rpc(target, Request("nvmf_create_transport", {"trtype": "VFIOUSER"}), null, *controller(tmp_path, "c0", "n0"))
    with initiator.connect(tmp_path / "c0") as mapped, mapped.queue(4, timeout=10) as queue:
        assert not mapped.identify().shadow_doorbells
        queue.wait([queue.read(mapped.namespace(1), n, bytearray(512)) for n in range(50)])
    target.kill()


def test_a_polling_target_is_sent_no_doorbells(target_factory: TargetFactory, tmp_path: Path) -> None:
    """Not when queues wrap around either: 25 times here, which would be 50 messages."""
    target = target_factory.start(polled=True)
    null = methods.null_create("n0", 16 * MIB, 512, uuid(2))
    rpc(target, methods.create_transport(), null, *controller(tmp_path, "c0", "n0"))
    with initiator.connect(tmp_path / "c0") as trapped, trapped.queue(64, timeout=10) as queue:
        namespace, buffer = trapped.namespace(1), initiator.allocate(512)
        queue.wait([queue.read(namespace, n, buffer) for n in range(64)])
        before = asyncio.run(target.messages_taken())
        for _ in range(100):
            queue.wait([queue.read(namespace, n, buffer) for n in range(64)])
        assert asyncio.run(target.messages_taken()) - before < 5, "the admin queue has doorbells"
    target.kill()


def test_a_target_that_dies(target_factory: TargetFactory, tmp_path: Path) -> None:
    target = target_factory.start()
    rpc(target, methods.create_transport(), *slow_volume(), *controller(tmp_path, "c0", "slow"))

    async def awaited(controller: initiator.Controller) -> list[object]:
        async with controller.async_queue(2) as queue:
            reads = [queue.read(controller.namespace(1), 0, bytearray(512)) for _ in range(3)]
            await asyncio.sleep(0)
            target.kill()
            return list(await asyncio.gather(*reads, return_exceptions=True))

    with initiator.connect(tmp_path / "c0") as controller_, controller_.queue(2, timeout=20) as queue:
        request = queue.read(controller_.namespace(1), 0, bytearray(512))
        outcomes = asyncio.run(awaited(controller_))
        assert [type(outcome) for outcome in outcomes] == [HostConnectionError] * 3
        with pytest.raises(HostConnectionError):
            request.wait()
        with pytest.raises(HostConnectionError):
            controller_.namespaces()


def test_no_module_says_so(tmp_path: Path) -> None:
    """The control plane works without; who needs the module is told how to get it."""
    code = "from nvmuser import initiator; initiator.allocate(1)"
    env = {**os.environ, "NVMUSER_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert "SetupError" in done.stderr
    assert "make setup" in done.stderr.splitlines()[-1]
