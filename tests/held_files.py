"""A file system whose slow operations last until the test says so: FUSE, served by a thread of the test.

Each file of a directory is there under its name. `hold` makes an operation wait, `release` carries it out and answers:
what goes on in between is thus a matter of order, not of time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path

import pytest

_HEADER = struct.Struct("IIQQIIII")
"""fuse_in_header: length, opcode, unique, node, and who asks (linux/fuse.h, as all structures here)."""
_ROOT = 1
_BUFFER = 1 << 20
_NO_ANSWER = {2, 36, 42}
"""FORGET, INTERRUPT, BATCH_FORGET."""


class Operation(IntEnum):
    """What can be held."""

    READ = 15
    WRITE = 16
    FSYNC = 20
    FALLOCATE = 43


class HeldFiles:
    """Made by `held_files`.

    :ivar path: where the files are seen.
    """

    def __init__(self, source: Path, path: Path, device: int) -> None:
        self.path = path
        self._device = device
        self._end = os.eventfd(0)
        self._files = [os.open(file, os.O_RDWR) for file in sorted(source.iterdir())]
        self._names = [os.fsencode(file.name) for file in sorted(source.iterdir())]
        self._held: list[tuple[int, Operation, Callable[[], bytes]]] = []
        self._changed = threading.Condition()
        self._hold: frozenset[Operation] = frozenset()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def hold(self, *operations: Operation) -> None:
        """From now on these wait."""
        with self._changed:
            self._hold = frozenset(operations)

    def waiting(self, operation: Operation) -> int:
        """How many of them are being held."""
        with self._changed:
            return sum(held is operation for _, held, _ in self._held)

    def wait_for(self, operation: Operation) -> None:
        """Until one is being held."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(held is operation for _, held, _ in self._held), 60)

    def release(self) -> None:
        """Carry out what is held, and hold nothing any more."""
        with self._changed:
            self._hold = frozenset()
            held, self._held = self._held, []
        for unique, _, action in held:
            self._answer(unique, action)

    def close(self) -> None:
        """Serve no longer: what is still asked fails. A process that has a file open does not keep the test waiting."""
        self.release()
        os.eventfd_write(self._end, 1)
        self._thread.join()
        for file in (*self._files, self._end, self._device):
            os.close(file)

    def _serve(self) -> None:
        while self._end not in select.select([self._device, self._end], [], [])[0]:
            try:
                message = os.read(self._device, _BUFFER + 4096)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EAGAIN):
                    continue  # interrupted while it waited to be read
                return  # ENODEV: unmounted
            _, opcode, unique, node, *_ = _HEADER.unpack_from(message)
            if opcode in _NO_ANSWER:
                continue
            action = self._action(opcode, node, message[_HEADER.size :])
            with self._changed:
                if opcode in self._hold and not self._is_probe(opcode, node, message[_HEADER.size :]):
                    self._held.append((unique, Operation(opcode), action))
                    self._changed.notify_all()
                    continue
            self._answer(unique, action)

    def _is_probe(self, opcode: int, node: int, body: bytes) -> bool:
        """Whether it only finds out what the file can do: behind the end it changes nothing."""
        return opcode == Operation.FALLOCATE and struct.unpack_from("QQ", body)[1] >= os.fstat(self._fd(node)).st_size

    def _answer(self, unique: int, action: Callable[[], bytes]) -> None:
        try:
            error, payload = 0, action()
        except OSError as failure:
            error, payload = -(failure.errno or errno.EIO), b""
        with contextlib.suppress(OSError):  # who asked has been killed
            os.write(self._device, struct.pack("IiQ", 16 + len(payload), error, unique) + payload)

    def _action(self, opcode: int, node: int, body: bytes) -> Callable[[], bytes]:
        actions: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup, 3: self._getattr, 4: self._getattr, 14: self._open, 15: self._read, 16: self._write,
            17: self._statfs, 18: self._nothing, 20: self._fsync, 25: self._nothing, 26: self._init,
            43: self._fallocate,
        }  # fmt: skip
        found = actions.get(opcode, self._unknown)
        return lambda: found(node, body)

    def _fd(self, node: int) -> int:
        return self._files[node - _ROOT - 1]

    def _unknown(self, node: int, body: bytes) -> bytes:
        raise OSError(errno.ENOSYS, "")

    def _nothing(self, node: int, body: bytes) -> bytes:
        return b""

    def _init(self, node: int, body: bytes) -> bytes:
        # Version 7.31; asynchronous reads and writes past the page cache, as libaio makes them.
        async_read, async_dio = 1 << 0, 1 << 15
        return struct.pack("IIIIHHII32x", 7, 31, 1 << 20, async_read | async_dio, 64, 48, _BUFFER, 1)

    def _statfs(self, node: int, body: bytes) -> bytes:
        blocks, block_size = 1 << 20, 4096  # a loop device deallocates in multiples of the latter
        return struct.pack("QQQQQIII28x", blocks, blocks, blocks, 16, 0, block_size, 255, block_size)

    def _attributes(self, node: int) -> bytes:
        if node == _ROOT:
            size, mode = 4096, 0o40755
        else:
            size, mode = os.fstat(self._fd(node)).st_size, 0o100644
        return struct.pack("QQQQQQIIIIIIIIII", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _lookup(self, node: int, body: bytes) -> bytes:
        name = body.rstrip(b"\0")
        if name not in self._names:
            raise OSError(errno.ENOENT, "")
        found = _ROOT + 1 + self._names.index(name)
        return struct.pack("QQQQII", found, 0, 60, 0, 0, 0) + self._attributes(found)

    def _getattr(self, node: int, body: bytes) -> bytes:
        return struct.pack("QII", 0, 0, 0) + self._attributes(node)  # the file may have grown since

    def _open(self, node: int, body: bytes) -> bytes:
        return struct.pack("QII", 0, 0, 0)

    def _read(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("QQI", body)
        return os.pread(self._fd(node), size, offset)

    def _write(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("QQI", body)
        return struct.pack("II", os.pwrite(self._fd(node), body[40 : 40 + size], offset), 0)

    def _fsync(self, node: int, body: bytes) -> bytes:
        os.fsync(self._fd(node))
        return b""

    def _fallocate(self, node: int, body: bytes) -> bytes:
        _, offset, length, mode = struct.unpack_from("QQQI", body)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate64(self._fd(node), mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            raise OSError(ctypes.get_errno(), "")
        return b""


@contextlib.contextmanager
def held_files(source: Path) -> Iterator[HeldFiles]:
    """The files of a directory, on a file system that only this test sees. Skips the test where it may not mount one.

    :param source: a directory; what is put into it later is not seen.
    """
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    script = f"mount -i -t fuse -o {options} held /mnt && echo ready && exec cat"
    argv = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[device]) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            os.close(device)
            pytest.skip("this user may not mount FUSE")
        files = HeldFiles(source, Path(f"/proc/{process.pid}/root/mnt"), device)
        try:
            yield files
        finally:
            files.close()
            assert process.stdin is not None
            process.stdin.close()
