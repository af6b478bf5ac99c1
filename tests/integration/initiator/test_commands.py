"""What a controller says of itself, and commands with and without data, on every kind of buffer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bare_target import BareTarget
from host_world import EUI64, MIB, nguid, rpc, uuid

from nvmuser import initiator
from nvmuser.errors import HostConnectionError, HostError, NotFoundError, NvmeStatusError, UsageError
from nvmuser.initiator.memory import transfer
from nvmuser.paths import SETUP, packaged_dir
from nvmuser.rpc import methods

ROOT = Path(__file__).parents[3]


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


@pytest.mark.skipif(packaged_dir() is not None, reason="packages bring the module")
def test_no_module_says_so(tmp_path: Path) -> None:
    """The control plane works without; the error says how to get the module."""
    code = "from nvmuser import initiator; initiator.allocate(1)"
    env = {**os.environ, "NVMUSER_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert "SetupError" in done.stderr
    assert SETUP in done.stderr.splitlines()[-1]
