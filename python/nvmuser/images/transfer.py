"""Copies between a raw file and a namespace, in order, without what is zero; and digests of both.

Owns the buffers of one copy. It waits for its I/O: run it in a thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from nvmuser import initiator
from nvmuser.errors import HostConnectionError
from nvmuser.initiator import Controller, Memory, Namespace, Queue, Request, allocate

CHUNK = 1 << 20
"""Bytes that are written, or left out, as a whole."""
_DEPTH = 8
_PATIENCE_S = 300.0
SYNC = 64 << 20
"""Bytes between two flushes, after which a copy can be resumed."""
_ZEROES = bytes(CHUNK)

Tick = Callable[[int], None]
"""Called with how many bytes are done, and on the disk."""


class Device:
    """A namespace that is open for a copy. A context manager."""

    def __init__(self, controller: Controller, namespace: Namespace) -> None:
        self._controller = controller
        self._namespace = namespace
        self._queue: Queue = controller.queue(_DEPTH * 4, timeout=_PATIENCE_S)
        self._buffers: list[Memory] = [allocate(CHUNK) for _ in range(_DEPTH)]

    @classmethod
    def open(cls, directory: os.PathLike[str] | str) -> Self:
        """The first namespace of the controller in `directory`.

        :raises HostError: there is none.
        """
        controller = initiator.connect(str(directory))
        try:
            return cls(controller, controller.namespace(1))
        except BaseException:
            controller.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._controller.close()

    @property
    def size(self) -> int:
        """In bytes."""
        return self._namespace.size

    def read(self, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """Each chunk with its offset, in order; a chunk is good until the next is asked for.

        :raises HostError: it cannot be read.
        """
        waiting: list[tuple[int, int, Memory, Request]] = []
        offset, spare = start, list(self._buffers)
        while offset < end or waiting:
            while offset < end and spare:
                size, buffer = min(CHUNK, end - offset), spare.pop()
                request = self._queue.read(self._namespace, self._block(offset), buffer[:size])
                waiting.append((offset, size, buffer, request))
                offset += size
            at, size, buffer, request = waiting.pop(0)
            request.wait()
            yield at, buffer.view[:size]
            spare.append(buffer)

    def write(self, chunks: Iterator[tuple[int, bytes]], done: Tick, start: int) -> None:
        """Write chunks in their order. Zeroes that are there already are not written, so that they take no space.

        :raises HostError: one cannot be written.
        """
        waiting: list[tuple[int, Memory, Request | None]] = []
        spare, safe = list(self._buffers), start
        for offset, data in chunks:
            while not spare:
                safe = self._finish(waiting, spare)
            waiting.append(self._begin(offset, data, spare))
            if offset + len(data) - safe >= SYNC:
                while waiting:
                    safe = self._finish(waiting, spare)
                self._flush(done, safe)
        while waiting:
            safe = self._finish(waiting, spare)
        self._flush(done, safe)

    def _begin(self, offset: int, data: bytes, spare: list[Memory]) -> tuple[int, Memory, Request | None]:
        end, block, buffer = offset + len(data), self._block(offset), spare.pop()
        if data == _ZEROES[: len(data)]:
            self._queue.read(self._namespace, block, buffer[: len(data)]).wait()
            if buffer.view[: len(data)] == data:
                return end, buffer, None
            blocks = len(data) // self._namespace.block_size
            return end, buffer, self._queue.write_zeroes(self._namespace, block, blocks)
        buffer.view[: len(data)] = data
        return end, buffer, self._queue.write(self._namespace, block, buffer[: len(data)])

    @staticmethod
    def _finish(waiting: list[tuple[int, Memory, Request | None]], spare: list[Memory]) -> int:
        end, buffer, request = waiting.pop(0)
        if request is not None:
            request.wait()
        spare.append(buffer)
        return end

    def _flush(self, done: Tick, safe: int) -> None:
        self._queue.flush(self._namespace).wait()
        done(safe)

    def _block(self, offset: int) -> int:
        return offset // self._namespace.block_size


def from_file(number: int, device: Device, start: int, end: int, done: Tick) -> None:
    """Fill a device with a file, from `start` on.

    :param number: the file's descriptor; what is behind its end is zero.
    """
    device.write(_chunks(number, start, end), done, start)


def to_file(device: Device, number: int, start: int, end: int, done: Tick) -> None:
    """Copy a device to a file that is empty from `start` on, with holes where it is zero.

    :raises OSError: the file cannot be written.
    """
    os.ftruncate(number, end)
    written = start
    for offset, data in device.read(start, end):
        if data != _ZEROES[: len(data)]:
            _write_all(number, data, offset)
        if offset + len(data) - written >= SYNC:
            written = offset + len(data)
            os.fdatasync(number)
            done(written)
    os.fsync(number)
    done(end)


def digest_of_file(number: int, size: int, tick: Tick) -> str:
    """SHA-256 of a file, and of zeroes behind its end up to `size`."""
    digest = hashlib.sha256()
    for offset, data in _chunks(number, 0, size):
        digest.update(data)
        tick(offset + len(data))
    return digest.hexdigest()


def digest_of_device(device: Device, size: int, tick: Tick) -> str:
    """SHA-256 of the first `size` bytes of a device.

    :raises HostError: it cannot be read.
    """
    digest = hashlib.sha256()
    for offset, data in device.read(0, size):
        digest.update(data)
        tick(offset + len(data))
    return digest.hexdigest()


def _chunks(number: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Of a file; holes are not read."""
    offset, data_from = start, start
    while offset < end:
        size = min(CHUNK, end - offset)
        if data_from <= offset:
            data_from = _next_data(number, offset, end)
        if data_from >= offset + size:
            yield offset, _ZEROES[:size]
        else:
            data = os.pread(number, size, offset)
            yield offset, data + bytes(size - len(data))
        offset += size


def _next_data(number: int, offset: int, end: int) -> int:
    """Where data begins, from `offset` on; a file system without holes has it everywhere."""
    try:
        return os.lseek(number, offset, os.SEEK_DATA)
    except OSError:  # ENXIO: nothing but a hole, up to the end
        return end


def _write_all(number: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(number, data, offset)
        if not count:
            raise HostConnectionError("the file takes no more")
        data, offset = data[count:], offset + count
