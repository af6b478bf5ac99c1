"""Data in pages here and there, as guests' drivers hand it over: every backend leaves what lies between them alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from backing import GROWN, MEMBER, MIB, every_backend, names, owner

from nvmuser import initiator
from nvmuser.errors import NvmeStatusError, UsageError

PAGE = 4096
GUARD = bytes(range(7, 256)) + bytes(PAGE - 249)
"""What lies around a buffer's pages. None of it is what a volume holds."""
BLOCK_SIZES = (512, 4096)
STARTS = (0, 4, 512, 2048, 4092)
"""Where a buffer begins in its first page."""
LARGEST = 128 << 10
"""What a controller takes at once."""
MAX_PAGES = LARGEST // PAGE + 1


Served = tuple[Path, dict[str, list[str]]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("scattered")
    with every_backend(directory, BLOCK_SIZES) as (_, bdevs):
        yield directory, bdevs


class Arena:
    """Pages in any order, with as many between them that no command may touch."""

    def __init__(self, seed: int) -> None:
        self.memory = initiator.allocate((2 * MAX_PAGES + 1) * PAGE)
        self.random = random.Random(seed)

    def take(self, size: int, start: int) -> initiator.Scattered:
        """A buffer that begins `start` bytes into a page; everything else is the guards'."""
        self.memory.view[:] = GUARD * (len(self.memory) // PAGE)
        count = (start + size + PAGE - 1) // PAGE
        pages = self.random.sample(range(1, 2 * MAX_PAGES, 2), count)
        pieces = []
        for page in pages:
            end = min(PAGE, start + size)
            pieces.append(self.memory[page * PAGE + start : page * PAGE + end])
            size -= end - start
            start = 0
        return initiator.scatter(pieces)

    def strays(self, buffer: initiator.Scattered) -> list[int]:
        """Offsets of bytes outside the buffer that are no longer the guards'."""
        now = bytes(self.memory.view)
        expected = bytearray(GUARD * (len(self.memory) // PAGE))
        for piece in buffer.pieces:
            at = piece.address - self.memory.address
            expected[at : at + piece.size] = piece.view
        return [] if now == expected else [n for n, was in enumerate(expected) if now[n] != was][:8]


def fill(buffer: initiator.Scattered, content: bytes) -> None:
    at = 0
    for piece in buffer.pieces:
        piece.view[:] = content[at : at + piece.size]
        at += piece.size


def content(buffer: initiator.Scattered) -> bytes:
    return b"".join(bytes(piece.view) for piece in buffer.pieces)


def transfers(size: int, block_size: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """Offsets and sizes: from a block to what a controller takes, across the places where a volume has seams."""
    sizes = sorted({block_size, PAGE, 3 * PAGE, 64 << 10, LARGEST - block_size, LARGEST})
    for seam in (0, 64 << 10, MIB, MEMBER, GROWN, size):
        for length in sizes:
            first = max(0, min(size - length, seam - rng.randrange(0, length + 1, block_size)))
            yield first, length


class Volume:
    """A namespace and what it holds, where that is known."""

    def __init__(self, connected: initiator.Controller, served: Served, name: str) -> None:
        self.namespace = connected.namespace(served[1][owner(name)].index(name) + 1)
        self.deallocates = connected.identify().dsm
        self.size = min(self.namespace.size, 8 * MIB)
        self.keeps = not name.startswith("null")
        self.held = bytearray(self.size)
        self.arena = Arena(len(name))

    def read(self, queue: initiator.Queue, at: int, size: int, start: int) -> bytes:
        buffer = self.arena.take(size, start)
        queue.read(self.namespace, at // self.namespace.block_size, buffer).wait()
        assert not self.arena.strays(buffer), f"read of {size} at {at}, buffer at {start}: memory beside it changed"
        return content(buffer)

    def check(self, queue: initiator.Queue, at: int, size: int, start: int) -> None:
        got = self.read(queue, at, size, start)
        assert not self.keeps or got == self.held[at : at + size], f"read of {size} at {at}, buffer at {start}"

    def write(self, queue: initiator.Queue, at: int, size: int, start: int) -> None:
        buffer, written = self.arena.take(size, start), self.arena.random.randbytes(size)
        fill(buffer, written)
        queue.write(self.namespace, at // self.namespace.block_size, buffer).wait()
        assert not self.arena.strays(buffer)
        self.held[at : at + size] = written
        if self.keeps:
            queue.compare(self.namespace, at // self.namespace.block_size, buffer).wait()
            assert not self.arena.strays(buffer)
            assert content(buffer) == written, "compared data was changed"

    def clear(self, queue: initiator.Queue, at: int, size: int) -> None:
        """Write Zeroes in the first half, Deallocate the other: of that, the volume says what is left."""
        block = self.namespace.block_size
        blocks = size // block
        if zeroed := blocks // 2:
            queue.write_zeroes(self.namespace, at // block, zeroed).wait()
            self.held[at : at + zeroed * block] = bytes(zeroed * block)
        first = at + zeroed * block
        if not self.deallocates:
            return
        queue.deallocate(self.namespace, [(first // block, blocks - zeroed)]).wait()
        self.held[first : at + size] = self.read(queue, first, at + size - first, 0)


@pytest.mark.parametrize("name", [name for block_size in BLOCK_SIZES for name in names(block_size)])
def test_only_the_pages_of_a_command_are_touched(served: Served, name: str) -> None:
    with initiator.connect(served[0] / owner(name)) as connected, connected.queue(8, timeout=60) as queue:
        volume = Volume(connected, served, name)
        assert volume.deallocates == (owner(name) == "all")
        block, rng = volume.namespace.block_size, volume.arena.random
        for at, size in transfers(volume.size, block, rng):
            for start in STARTS if size + max(STARTS) <= LARGEST else STARTS[:2]:
                volume.check(queue, at, size, start)
        if name.endswith("snapshot"):
            return
        for number, (at, size) in enumerate(transfers(volume.size, block, rng)):
            volume.write(queue, at, size, STARTS[number % 2 if size == LARGEST else number % len(STARTS)])
            volume.check(queue, at, size, STARTS[number % 2])
            if number % 5 == 4:
                volume.clear(queue, at, size)
                volume.check(queue, at, size, STARTS[1])
        for at in range(0, volume.size, LARGEST):
            volume.check(queue, at, LARGEST, 0)


def test_what_a_list_of_pages_cannot_name() -> None:
    memory = initiator.allocate(4 * PAGE)
    for pieces, reason in (
        ([], "one piece of memory or more"),
        ([memory[:0]], "none is empty"),
        ([memory[2:PAGE]], "a multiple of four"),
        ([memory[:PAGE], memory[PAGE + 4 : 2 * PAGE]], "piece 1 does not begin at a page"),
        ([memory[:512], memory[PAGE : 2 * PAGE]], "piece 0 does not end at a page's end"),
        ([memory] * 129, "516 pages are more than a list of one page names"),
    ):
        with pytest.raises(UsageError, match=reason):
            initiator.scatter(pieces)


def test_a_comparison_of_scattered_pages(served: Served) -> None:
    with initiator.connect(served[0] / "all") as connected, connected.queue(2, timeout=60) as queue:
        volume = Volume(connected, served, "file-4096")
        volume.write(queue, 0, LARGEST, 4)
        buffer = volume.arena.take(LARGEST, 512)
        fill(buffer, bytes(volume.held[: LARGEST - 1]) + bytes([volume.held[LARGEST - 1] ^ 1]))
        with pytest.raises(NvmeStatusError, match="COMPARE FAILURE"):
            queue.compare(volume.namespace, 0, buffer).wait()
