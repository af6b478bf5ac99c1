"""Guest memory, as a device sees it: by guest-physical address, within what the client has registered.

Owns the bounds of every access, and how long a mapped range lives: libvfio-user must not unmap a region while a view
of it is still held. Quiescing is for that (libvfio-user.h, vfu_device_quiesce_cb_t): while views are alive
the context says that the device is not quiet yet, and the client waits.
"""

from __future__ import annotations

import contextlib
import errno
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nvmuser.errors import DeviceError, UsageError
from nvmuser.pci import raw

_ADDRESS_SPACE = 1 << 64


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """A range of guest-physical addresses for DMA, in bytes (vfio-user specification, VFIO_USER_DMA_MAP).

    One that is not `mapped` is accessed by messages to the client.
    """

    address: int
    size: int
    mapped: bool

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size


@dataclass(eq=False)
class _Mapping:
    """One piece of a mapped range, until the last view of it is gone."""

    handle: Any
    iov: Any
    alive: weakref.ref[Any] = field(init=False)


class GuestMemory:
    """What the client of one context has registered."""

    def __init__(self, context: Any, *, desynchronized: Callable[[], None]) -> None:
        """Start without regions.

        :param context: the vfu_ctx_t, or NULL.
        :param desynchronized: called when messages are out of step with the client.
        """
        self._ffi, self._lib = raw.api()
        self._context = context
        self._desynchronized = desynchronized
        self._regions: list[Region] = []
        self._mappings: set[_Mapping] = set()
        self.unmapped: Callable[[], None] = lambda: None
        """Called when the last mapping is gone."""
        self.still = False
        """The guest stands still, and what it has in memory may be on its way: nothing is written."""
        self.by_message = True
        """Whether messages to the client are possible: not while it waits for us to quiesce."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """What is registered, by address. Empty while no client is connected."""
        return tuple(self._regions)

    @property
    def is_mapped(self) -> bool:
        """Whether anybody holds a view of guest memory."""
        return bool(self._mappings)

    def read(self, address: int, size: int) -> bytes:
        """Copy `size` bytes from a guest-physical address.

        :raises DeviceError: a part of the range is not registered, or could not be read.
        :raises UsageError: it is no range of 64-bit addresses.
        """
        self._pieces(address, size)
        data = bytearray(size)
        self.read_into(address, data)
        return bytes(data)

    def read_into(self, address: int, target: bytearray | memoryview) -> None:
        """Fill a buffer from a guest-physical address. Raises as `read` does."""
        self._copy(address, memoryview(target).cast("B"), write=False)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy data to a guest-physical address.

        :raises DeviceError: a part of the range is not registered for writing, or could not be written; EBUSY: the
            guest stands still.
        :raises UsageError: it is no range of 64-bit addresses.
        """
        self._copy(address, memoryview(data).cast("B"), write=True)

    def _copy(self, address: int, data: memoryview, *, write: bool) -> None:
        # All of the range is looked up before anything is copied.
        pieces = self._pieces(address, len(data))
        self._check_still(write)
        buffer = self._ffi.from_buffer(data, require_writable=not write)
        for region, start, size in pieces:
            if not region.mapped and not self.by_message:
                raise DeviceError(f"guest memory at {start:#x} is not mapped: not while quiescing", errno.EBUSY)
            done = self._lib.nvmuser_vfu_dma_copy(self._context, start, buffer + (start - address), size, write)
            number = self._ffi.errno
            if done < 0 and not region.mapped and number in (errno.EAGAIN, errno.EPROTO, errno.EINVAL):
                # No answer, or something else in its place: what comes next from the client would be taken for it.
                self._desynchronized()
            raw.check(done, f"{size} bytes of guest memory at {start:#x}")

    @contextlib.contextmanager
    def mapped(self, address: int, size: int, *, write: bool = False) -> Iterator[list[memoryview]]:
        """Guest memory itself, in pieces: one for each region that the range is in.

        The client waits with changes to its memory until the block has ended and every slice of the views is gone:
        keep it short. A client that truncates the file behind its memory ends us with SIGBUS: for one that is not
        trusted, use `read` and `write`.

        :raises DeviceError: a part of the range is not registered, or not mappable (EFAULT).
        """
        pieces = [self._map(start, length, write=write) for _, start, length in self._pieces(address, size)]
        try:
            yield pieces
        finally:
            for view in pieces:
                view.release()
            pieces.clear()

    def _map(self, address: int, size: int, *, write: bool) -> memoryview:
        self._check_still(write)
        iov = self._ffi.new("struct iovec *")
        handle = self._lib.nvmuser_vfu_dma_map(self._context, address, size, write, iov)
        raw.check(0 if handle else -1, f"{size} bytes of guest memory at {address:#x}")
        buffer = self._ffi.buffer(iov.iov_base, iov.iov_len)
        mapping = _Mapping(handle, iov)
        # Every memoryview of the buffer, slices too, keeps it alive; so does an array made of one.
        mapping.alive = weakref.ref(buffer, lambda _: self._unmap(mapping))
        self._mappings.add(mapping)
        view = memoryview(buffer)
        return view if write else view.toreadonly()

    def _unmap(self, mapping: _Mapping) -> None:
        self._mappings.discard(mapping)
        self._lib.nvmuser_vfu_dma_unmap(self._context, mapping.handle, mapping.iov)
        if not self._mappings:
            self.unmapped()

    def _check_still(self, write: bool) -> None:
        if write and self.still:
            raise DeviceError("the guest stands still: nothing is written to its memory", errno.EBUSY)

    def _pieces(self, address: int, size: int) -> list[tuple[Region, int, int]]:
        """The range cut at the borders of regions: (region, address, size)."""
        if size <= 0 or address < 0 or address + size > _ADDRESS_SPACE:
            raise UsageError(f"{size} bytes at {address:#x}: not a range of guest memory")
        pieces, at, end = [], address, address + size
        for region in self._regions:
            if region.address <= at < region.end:
                length = min(end, region.end) - at
                pieces.append((region, at, length))
                at += length
                if at == end:
                    return pieces
        raise DeviceError(f"guest memory at {at:#x} is not registered ({size} bytes at {address:#x})", errno.EFAULT)

    def changed(self, region: Region, *, added: bool) -> None:
        """Add a region that the client has registered, or remove one that it is about to take back."""
        if added and region not in self._regions:
            self._regions = sorted([*self._regions, region])
        elif not added and region in self._regions:
            self._regions.remove(region)

    def close(self) -> None:
        """Forget all regions: the context is gone."""
        self._regions.clear()
        self._context = self._ffi.NULL
