"""Memory that a controller reads and writes, and how other memory gets there and back.

Owns allocation, and the rule for what is copied: nothing that lies in DMA memory at a multiple of four, whatever object
exposes it (a slice, a memoryview, a numpy array); everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nvmuser.errors import HostError, UsageError
from nvmuser.initiator.environment import api

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAGE = 4096


class Memory:
    """DMA memory, or a slice of it. It is freed when it, its slices and all views of it are gone.

    `view` is a writable memoryview: `numpy.frombuffer(memory.view, dtype)` is an array on the same bytes. `address` and
    `size` are in bytes.
    """

    __slots__ = ("_owner", "address", "size", "view")
    into = None
    """Nothing is copied: see Transfer."""

    def __init__(self, owner: Any, address: int, view: memoryview) -> None:
        self._owner = owner
        self.address = address
        self.view = view
        self.size = len(view)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> Memory:
        start, stop, step = part.indices(self.size)
        if step != 1:
            raise UsageError("DMA memory is sliced without a step")
        return Memory(self._owner, self.address + start, self.view[start : max(start, stop)])

    def __bytes__(self) -> bytes:
        return bytes(self.view)


def allocate(size: int, align: int = PAGE) -> Memory:
    """Allocate zeroed DMA memory: `size` bytes at a multiple of `align`.

    :raises HostError: there is not so much left of what the driver was started with (`initialise`).
    :raises UsageError: the size is not positive.
    """
    if size <= 0:
        raise UsageError(f"{size} bytes of DMA memory: the size must be positive")
    ffi, lib = api()
    pointer = lib.nvmuser_dma_alloc(size, align)
    if pointer == ffi.NULL:
        raise HostError(f"no {size} bytes of DMA memory left: start with more (initiator.initialise(memory_mib=…))")
    owner = ffi.gc(pointer, lib.nvmuser_dma_free, size)
    return Memory(owner, int(ffi.cast("uintptr_t", owner)), memoryview(ffi.buffer(owner, size)).cast("B"))


@dataclass(slots=True)
class Transfer:
    """The data of one command where it is not simply a Memory, kept until the controller is done with it.

    :param kept: what must not go away meanwhile.
    :param into: the destination to which what was read has yet to be copied.
    """

    address: int
    size: int
    kept: object = None
    into: memoryview | None = None
    bounce: Memory | None = None

    def finish(self) -> None:
        """Copy what the command read to its destination, after it has succeeded."""
        if self.into is not None and self.bounce is not None:
            self.into[:] = self.bounce.view


def transfer(buffer: Memory | Buffer, *, reading: bool) -> Transfer | Memory:
    """Make a buffer reachable for the controller.

    :param reading: the controller writes into it.
    :raises UsageError: it is read-only, or empty, or its bytes are not one piece.
    """
    if isinstance(buffer, Memory) and buffer.address % 4 == 0 and buffer.size:
        return buffer
    ffi, lib = api()
    view = buffer.view if isinstance(buffer, Memory) else memoryview(buffer)
    if not view.c_contiguous:
        raise UsageError("a buffer must be one piece of memory")
    if reading and view.readonly:
        raise UsageError("a buffer to read into is read-only")
    if view.nbytes == 0:
        raise UsageError("a buffer of no bytes: it must hold at least one block")
    flat = view.cast("B")
    pinned = ffi.from_buffer(flat)
    address = int(ffi.cast("uintptr_t", pinned))
    if address % 4 == 0 and lib.nvmuser_is_dma(address, len(flat)):
        return Transfer(address, len(flat), pinned)
    bounce = allocate(len(flat))
    if reading:
        return Transfer(bounce.address, len(flat), None, flat, bounce)
    bounce.view[:] = flat
    return Transfer(bounce.address, len(flat), None, None, bounce)
