"""What one guest waits for, the others on its core do not: flush, deallocate and write zeroes that last."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from backing import MIB, NQN, call, controller, sparse, uuid
from bare_target import BareTarget, TargetFactory
from held_files import HeldFiles, Operation, held_files

from nvmuser import initiator
from nvmuser.rpc import Client, methods
from nvmuser.rpc.methods import Request

BLOCK, READS = 4096, 200
Submit = Callable[[initiator.Queue, initiator.Namespace], initiator.Request]
SLOW: dict[str, tuple[Operation, Submit]] = {
    "flush": (Operation.FSYNC, lambda queue, space: queue.flush(space)),
    "deallocate": (Operation.FALLOCATE, lambda queue, space: queue.deallocate(space, [(8, 4), (16, 4)])),
    "zeroes": (Operation.FALLOCATE, lambda queue, space: queue.write_zeroes(space, 8, 4)),
}


def two_volumes(target: BareTarget, directory: Path, slow: HeldFiles | Path) -> tuple[Path, Path]:
    """A controller with the file of `slow`, or with this device, and one with another."""
    backing = slow if isinstance(slow, Path) else slow.path / "v"
    call(
        target,
        methods.create_transport(),
        methods.aio_create("slow", str(backing), BLOCK, uuid(1)),
        methods.aio_create("quick", str(sparse(directory / "quick", MIB)), BLOCK, uuid(2)),
        *controller(directory, "c0", "slow"),
        *controller(directory, "c1", "quick"),
    )
    return directory / "c0", directory / "c1"


@pytest.mark.parametrize("polled", [False, True], ids=["interrupts", "polled"])
@pytest.mark.parametrize("slow", SLOW)
def test_a_neighbour_reads_meanwhile(target_factory: TargetFactory, tmp_path: Path, polled: bool, slow: str) -> None:
    operation, submit = SLOW[slow]
    (tmp_path / "slow").mkdir()
    backing = tmp_path / "slow" / "v"
    backing.write_bytes(b"\xff" * MIB)
    with held_files(tmp_path / "slow") as files:
        slow_one, quick_one = two_volumes(target_factory.start(polled=polled), tmp_path, files)
        with (
            initiator.connect(slow_one) as one,
            initiator.connect(quick_one) as other,
            one.queue(4, timeout=20) as waits,
            other.queue(4, timeout=20) as reads,
        ):
            data = initiator.allocate(BLOCK)
            files.hold(operation)
            try:
                request = submit(waits, one.namespace(1))
                files.wait_for(operation)
                # The file is locked meanwhile, so that a write to it waits.
                write = waits.write(one.namespace(1), 0, bytes(BLOCK))
                for block in range(READS):
                    reads.read(other.namespace(1), block, data).wait()
                waits.poll()
                assert not request.done, f"{slow}: answered before the device has"
                assert not write.done
            finally:
                files.release()
            waits.wait([request, write])
            if operation is Operation.FALLOCATE:
                assert backing.read_bytes()[8 * BLOCK : 12 * BLOCK] == bytes(4 * BLOCK)


def test_many_ranges_leave_the_neighbours_theirs(target_factory: TargetFactory, tmp_path: Path) -> None:
    """More ranges wait for a device than the process has I/Os for all volumes."""
    (tmp_path / "slow").mkdir()
    sparse(tmp_path / "slow" / "v", MIB)
    ranges = [(block, 1) for block in range(256)]
    with held_files(tmp_path / "slow") as files, contextlib.ExitStack() as stack:
        volumes = two_volumes(target_factory.start(), tmp_path, files)
        one, other = (stack.enter_context(initiator.connect(path)) for path in volumes)
        flood = [stack.enter_context(one.queue(128, timeout=60)) for _ in range(3)]
        reads = stack.enter_context(other.queue(1, timeout=20))
        files.hold(Operation.FALLOCATE)
        try:
            requests = [[queue.deallocate(one.namespace(1), ranges) for _ in range(128)] for queue in flood]
            files.wait_for(Operation.FALLOCATE)
            for block in range(READS):
                reads.read(other.namespace(1), block, bytearray(BLOCK)).wait()
        finally:
            files.release()
        for queue, submitted in zip(flood, requests, strict=True):
            queue.wait(submitted, 120)


def read_some(queue: initiator.Queue, space: initiator.Namespace) -> None:
    data = initiator.allocate(BLOCK)
    for block in range(READS):
        queue.read(space, block, data).wait()


async def while_accepted(target: BareTarget, request: Request, act: Callable[[], None]) -> None:
    """Act while a call is being carried out, which ends only then."""
    async with await Client.connect(target.rpc_socket) as client:
        done = asyncio.ensure_future(client.call(request.method, dict(request.params)))
        await client.call("spdk_get_version")  # behind it on the same connection
        assert not done.done()
        act()
        await done


async def test_a_namespace_goes_when_its_flush_has_ended(target_factory: TargetFactory, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    sparse(tmp_path / "slow" / "v", MIB)
    with held_files(tmp_path / "slow") as files:
        target = target_factory.start()
        slow_one, quick_one = await asyncio.to_thread(two_volumes, target, tmp_path, files)
        with (
            initiator.connect(slow_one) as one,
            initiator.connect(quick_one) as other,
            one.queue(4, timeout=20) as waits,
            other.queue(4, timeout=20) as reads,
        ):
            files.hold(Operation.FSYNC)
            request = waits.flush(one.namespace(1))
            files.wait_for(Operation.FSYNC)

            def meanwhile() -> None:
                try:
                    read_some(reads, other.namespace(1))
                    waits.poll()
                    assert not request.done
                finally:
                    files.release()
                waits.wait([request])

            await while_accepted(target, methods.remove_namespace(f"{NQN}:c0", 1), meanwhile)
            assert one.namespaces() == []


def test_a_volume_grows_while_its_flush_lasts(target_factory: TargetFactory, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    backing = sparse(tmp_path / "slow" / "v", MIB)
    with held_files(tmp_path / "slow") as files:
        target = target_factory.start()
        slow_one, _ = two_volumes(target, tmp_path, files)
        with initiator.connect(slow_one) as one, one.queue(4, timeout=20) as waits:
            try:
                files.hold(Operation.FSYNC)
                request = waits.flush(one.namespace(1))
                files.wait_for(Operation.FSYNC)
                os.truncate(backing, 2 * MIB)
                _, [bdev] = call(target, methods.aio_rescan("slow"), Request("bdev_get_bdevs", {"name": "slow"}))
                assert bdev["num_blocks"] == 2 * MIB // BLOCK
                waits.poll()
                assert not request.done
            finally:
                files.release()
            waits.wait([request])
            [grown] = one.namespaces()
            waits.write(grown, grown.blocks - 1, b"\x5a" * BLOCK).wait()
        assert grown.size == 2 * MIB
        assert backing.read_bytes()[-BLOCK:] == b"\x5a" * BLOCK


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    made = subprocess.run(["losetup", "-f", "--show", image], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.parametrize("slow", SLOW)
def test_a_block_devices_calls_are_not_waited_for_either(tmp_path: Path, slow: str) -> None:
    """A loop device over a file whose calls last."""
    operation, submit = SLOW[slow]
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "v").write_bytes(b"\xff" * MIB)
    with (
        held_files(tmp_path / "slow") as files,
        loop_device(files.path / "v") as device,
        contextlib.ExitStack() as stack,
    ):
        factory = TargetFactory(tmp_path)
        stack.callback(factory.end)  # before the device goes
        slow_one, quick_one = two_volumes(factory.start(), tmp_path, device)
        with (
            initiator.connect(slow_one) as one,
            initiator.connect(quick_one) as other,
            one.queue(4, timeout=20) as waits,
            other.queue(4, timeout=20) as reads,
        ):
            waits.write(one.namespace(1), 8, bytes(BLOCK)).wait()  # else there is nothing to flush
            try:
                files.hold(operation)
                request = submit(waits, one.namespace(1))
                files.wait_for(operation)
                read_some(reads, other.namespace(1))
                waits.poll()
                assert not request.done, f"{slow}: answered before the device has"
            finally:
                files.release()
            waits.wait([request])


def threads(target: BareTarget) -> dict[str, dict[str, str]]:
    """By name, what proc_pid_status(5) has of each thread."""
    found = {}
    for task in Path(f"/proc/{target.process.pid}/task").iterdir():
        facts = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        found[facts["Name"]] = {key: value.strip() for key, value in facts.items()}
    return found


def test_a_volume_goes_while_a_call_is_in_flight(target_factory: TargetFactory, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    sparse(tmp_path / "slow" / "v", MIB)
    with held_files(tmp_path / "slow") as files, ThreadPoolExecutor() as pool:
        target = target_factory.start()
        slow_one, _ = two_volumes(target, tmp_path, files)
        with initiator.connect(slow_one) as one, one.queue(4, timeout=20) as queue:
            files.hold(Operation.FSYNC)
            request = queue.flush(one.namespace(1))
            files.wait_for(Operation.FSYNC)
            deleted = pool.submit(call, target, Request("bdev_aio_delete", {"name": "slow"}))
            files.release()
            queue.wait([request])
            deleted.result(20)
        thread = threads(target)["bdev_aio"]
        assert int(thread["SigBlk"], 16) & 1 << signal.SIGTERM - 1, "signals are the main thread's"
        if len(os.sched_getaffinity(0)) > 1:
            assert thread["Cpus_allowed"] != threads(target)["reactor_0"]["Cpus_allowed"]
        target.process.terminate()
        assert target.process.wait(20) == 0
