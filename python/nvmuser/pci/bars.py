"""Base address registers: what a device declares, and the memory behind those that a guest may map.

Owns the rules for sizes and areas (PCI Local Bus Specification 3.0, 6.2.5.1) and the memfd. `nvmuser.pci.context`
brings a guest's accesses here.
"""

from __future__ import annotations

import enum
import mmap
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from nvmuser.errors import DeviceError, UsageError

COUNT = 6
PAGE = mmap.PAGESIZE
_LARGEST_IO = 256


class Space(enum.Enum):
    """Where the guest sees a BAR."""

    MEMORY = "memory"
    IO = "I/O ports"


@dataclass(frozen=True, slots=True)
class Area:
    """A part of a BAR that guests may map: whole pages. `offset` and `size` are in bytes."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Bar:
    """One base address register (PCI Local Bus Specification 3.0, 6.2.5.1).

    :raises UsageError: index, size or areas contradict that section, or each other.
    :param index: 0 to 5; a `wide` one takes the next index too.
    :param size: in bytes, a power of two.
    :param wide: it may lie anywhere in 64 bits.
    :param mappable: the areas that guests access without a message to the device. The rest goes to `PciDevice.read` and
        `write`; what comes by message all the same (libvfio-user.h, vfu_setup_region) goes to the areas' memory.
    """

    index: int
    size: int
    space: Space = Space.MEMORY
    wide: bool = False
    prefetchable: bool = False
    mappable: tuple[Area, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.index < COUNT - self.wide:
            raise UsageError(f"BAR {self.index}: there are BARs 0 to 5, and a wide one takes two")
        smallest = 4 if self.space is Space.IO else 16
        if self.size < smallest or self.size & (self.size - 1):
            raise UsageError(f"BAR {self.index}: its size is a power of two from {smallest} on, not {self.size}")
        if self.space is Space.IO and (self.wide or self.prefetchable or self.mappable or self.size > _LARGEST_IO):
            raise UsageError(f"BAR {self.index}: I/O ports: {_LARGEST_IO} at most, not wide, prefetchable or mappable")
        end = 0
        for area in sorted(self.mappable, key=lambda area: area.offset):
            if area.offset < end or area.size <= 0 or area.end > self.size:
                raise UsageError(f"BAR {self.index}: areas overlap, are empty, or go beyond its {self.size} bytes")
            if area.offset % PAGE or area.size % PAGE:
                raise UsageError(f"BAR {self.index}: an area begins and ends at a multiple of {PAGE}")
            end = area.end


def check_bars(bars: tuple[Bar, ...]) -> None:
    """Check that no two BARs have the same index.

    :raises UsageError: two want the same index.
    """
    used: set[int] = set()
    for bar in bars:
        indexes = {bar.index, bar.index + bar.wide}
        if used & indexes:
            raise UsageError(f"BAR {min(used & indexes)} is declared twice")
        used |= indexes


class BarMemory:
    """The memfd behind a mappable BAR, and our own view of it. Guests may write to its areas at any time.

    :raises DeviceError: the memory could not be allocated.
    """

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.fd = os.memfd_create(f"nvmuser-bar{bar.index}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, bar.size)
            self._map = mmap.mmap(self.fd, bar.size)
        except OSError as error:
            os.close(self.fd)
            raise DeviceError(f"memory for BAR {bar.index}: {error.strerror}") from error
        self.view = memoryview(self._map)

    def holds(self, offset: int, size: int) -> bool:
        """Whether an access of `size` bytes at `offset` lies in an area."""
        return any(area.offset <= offset and offset + size <= area.end for area in self.bar.mappable)

    def read(self, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes at `offset`."""
        return int.from_bytes(self.view[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store a value as `size` little-endian bytes at `offset`."""
        self.view[offset : offset + size] = value.to_bytes(size, "little")

    def close(self) -> None:
        """Release the memory. A view that is still held stays valid: the mapping ends with the last one."""
        if self.fd >= 0:
            self.view.release()
            # The mapping has a descriptor of its own.
            del self._map
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
