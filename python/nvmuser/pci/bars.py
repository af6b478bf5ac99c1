"""Base address registers: what a device declares, and the memory behind those that a guest may map.

Owns the rules for sizes and areas (PCI Local Bus Specification 3.0, 6.2.5.1) and the memfd. How a guest's accesses get
here is the context's business.
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
    """A part of a BAR that guests may map: whole pages."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Bar:
    """One BAR.

    :param index: 0 to 5; a `wide` one takes the next index too.
    :param size: in bytes, a power of two.
    :param wide: it may lie anywhere in 64 bits.
    :param mappable: the areas that guests access without telling the device. The rest, and what comes by message all
        the same (libvfio-user.h, vfu_setup_region), goes to `PciDevice.read` and `write`; areas go to their memory.
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
    """:raise UsageError: two want the same index."""
    used: set[int] = set()
    for bar in bars:
        indexes = {bar.index, bar.index + bar.wide}
        if used & indexes:
            raise UsageError(f"BAR {min(used & indexes)} is declared twice")
        used |= indexes


class BarMemory:
    """The memfd behind a mappable BAR, and our own view of it. Areas of it are the guest's to write at any time."""

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
        """Whether an access lies in an area."""
        return any(area.offset <= offset and offset + size <= area.end for area in self.bar.mappable)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.view[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.view[offset : offset + size] = value.to_bytes(size, "little")

    def close(self) -> None:
        """Give the memory back. A view that somebody still has stays good: the mapping goes with the last one."""
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
