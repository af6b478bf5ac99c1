"""What a dead target had in flight: the kernel finishes it before the process is reaped, and not one byte later.

The backing is slowed by the kernel's own I/O throttling, so that a kill finds many requests in flight. What threads
do, flush, unmap and write zeroes, is held by a file system of the test.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from held_files import Operation, held_files
from throttle import bytes_written, throttled

from nvmuser.toolchain import find_spdk

SIZE = 16 << 20
RATE = 2 << 20
"""Bytes per second: a full queue of 128 KiB writes takes seconds."""


def on_disk(path: Path) -> str:
    """A digest of what the device holds, past the page cache."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, SIZE) as buffer:
            os.preadv(number, [buffer], 0)
            return hashlib.sha256(buffer).hexdigest()
    finally:
        os.close(number)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert process.poll() is None, "bdevperf has ended by itself"
        assert time.monotonic() < deadline
        select.select([], [], [], 0.02)


def bdevperf(tmp_path: Path, backing: Path, workload: str, depth: int) -> list[str]:
    """SPDK's own `bdev_aio`, in `bdevperf`: a target's volumes are the same module."""
    config = tmp_path / "late.json"
    params = {"name": "late", "filename": str(backing), "block_size": 4096, "fallocate": True}
    volume = {"method": "bdev_aio_create", "params": params}
    config.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": [volume]}]}))
    argv = [str(find_spdk().binary("bdevperf")), "--no-huge", "--no-pci", "-s", "512", "-m", "0x1", "-c", str(config)]
    return [*argv, "-r", str(tmp_path / "rpc.sock"), "-q", str(depth), "-o", "131072", "-w", workload, "-t", "60"]


def test_nothing_lands_after_the_process_is_reaped(tmp_path: Path) -> None:
    backing, log = tmp_path / "late.img", tmp_path / "bdevperf.log"
    # Not what bdevperf writes, which is zeros.
    backing.write_bytes(b"\xff" * SIZE)
    os.sync()
    argv = bdevperf(tmp_path, backing, "randwrite", 64)
    with throttled(tmp_path, RATE) as group, log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output)
        pidfd = os.pidfd_open(process.pid)
        try:
            (group / "cgroup.procs").write_text(str(process.pid))
            wait_until(lambda: bytes_written(process.pid) > RATE, process)
            process.send_signal(signal.SIGKILL)
            early, _, _ = select.select([pidfd], [], [], 0.2)
            before_the_end = on_disk(backing)
            select.select([pidfd], [], [], 60)
            at_the_end = on_disk(backing)
            select.select([], [], [], 3)
            assert not early, "nothing was in flight, so that this shows nothing"
            assert before_the_end != at_the_end, "what was in flight was finished before the process was reaped"
            assert on_disk(backing) == at_the_end, "a write has landed after the process was reaped"
        finally:
            os.close(pidfd)
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("workload", "operation"),
    [("flush", Operation.FSYNC), ("unmap", Operation.FALLOCATE), ("write_zeroes", Operation.FALLOCATE)],
)
def test_a_call_ends_before_its_process(tmp_path: Path, workload: str, operation: Operation) -> None:
    """It is made by a thread, for which a killed process waits as it does for libaio."""
    (tmp_path / "files").mkdir()
    backing = tmp_path / "files" / "late.img"
    backing.write_bytes(b"\xff" * SIZE)
    with held_files(tmp_path / "files") as files, (tmp_path / "bdevperf.log").open("wb") as output:
        files.hold(operation)
        argv = bdevperf(tmp_path, files.path / backing.name, workload, 4)
        process = subprocess.Popen(argv, stdout=output, stderr=output)
        pidfd = os.pidfd_open(process.pid)
        try:
            files.wait_for(operation)
            process.send_signal(signal.SIGKILL)
            early, _, _ = select.select([pidfd], [], [], 0.2)
            files.release()
            select.select([pidfd], [], [], 60)
            at_the_end = on_disk(backing)
            select.select([], [], [], 1)
            assert not early, "the process was reaped while its call was in flight"
            assert on_disk(backing) == at_the_end
            assert (backing.read_bytes() != b"\xff" * SIZE) == (operation is Operation.FALLOCATE)
        finally:
            os.close(pidfd)
            process.kill()
            process.wait()
