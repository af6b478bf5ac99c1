"""Guest memory as the guest's QEMU has mapped it for DMA.

Owns the table of DMA maps and their descriptors. Reads and writes only inside a map that the guest made, and never
touches guest memory by a pointer: a guest may cut its memory short at any time, and a system call then fails where a
pointer would raise SIGBUS.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvmf_vfio.keeper.fd_store import Encoded, StoredFd
from nvmf_vfio.protocol.descriptors import Descriptor, is_guest_memory
from nvmf_vfio.protocol.messages import DmaMap, DmaUnmap

MAX_MAPS = 8192
"""Maps that a guest may have at a time: libvfio-user's MAX_DMA_REGIONS (lib/private.h in our SPDK) is the same, and
`max_dma_maps` reports it to clients. A guest with virtio-mem has a map for each block of it."""

_SPARE_NAMES = 64


class GuestMemoryError(Exception):
    """The address is not in memory that the guest has mapped and shares."""


class Refused(Exception):
    """A request is refused.

    :param number: the errno of the reply.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = number


@dataclass(frozen=True, slots=True)
class Region:
    """One DMA map, with the file behind it when it is shared memory."""

    map: DmaMap
    stored: StoredFd | None
    text: str
    """In the record, see `GuestMemory.to_json`."""

    def __lt__(self, other: Region) -> bool:
        return self.map.address < other.map.address


class GuestMemory:
    """The DMA maps of one guest connection, in the order of their addresses."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.on_write: Callable[[int, int], None] = lambda address, size: None
        """Called with the guest physical address and the size of each write: a guest that migrates needs to know."""
        self._numbers: dict[str | None, int] = {}

    def check_map(self, request: DmaMap, descriptors: list[Descriptor]) -> None:
        """Check that the descriptor of a request is memory, and long enough.

        :raises Refused: EINVAL, it is not.
        """
        if len(descriptors) > 1:
            raise Refused(errno.EINVAL, f"{len(descriptors)} descriptors for one map")
        for descriptor in descriptors:
            if not is_guest_memory(descriptor):
                raise Refused(errno.EINVAL, "the descriptor is not a memfd, nor a file of tmpfs or hugetlbfs")
            if os.fstat(descriptor.fileno()).st_size < request.offset + request.size:
                raise Refused(errno.EINVAL, "the memory ends before the map does")

    def check_room(self, request: DmaMap) -> None:
        """Check that the request fits beside the other maps.

        :raises Refused: EEXIST (overlaps another map), ENOSPC (too many).
        """
        there = self._between(request.address, request.end)
        for region in there:
            if region.map != request:
                raise Refused(errno.EEXIST, f"map at {request.address:#x} overlaps the one at {region.map.address:#x}")
        if not there and len(self.regions) >= MAX_MAPS:
            raise Refused(errno.ENOSPC, f"more than {MAX_MAPS} maps")

    def overlapping(self, start: int, end: int) -> list[Region]:
        """Maps that have a part in this range of addresses."""
        return self._between(start, end)

    def _between(self, start: int, end: int) -> list[Region]:
        """Maps that overlap this range."""
        first = bisect_right(self.regions, start, key=_address)
        if first and self.regions[first - 1].map.end > start:
            first -= 1
        return self.regions[first : bisect_left(self.regions, end, key=_address)]

    def map(self, request: DmaMap, stored: StoredFd | None) -> None:
        """Remember a map that has been accepted. Takes the use of the descriptor over."""
        for region in self._between(request.address, request.end):
            if stored is not None and region.stored is stored and region.map == request:
                # An endpoint that was killed before it had answered has remembered it.
                stored.release()
                return
        self.unmap(DmaUnmap(0, request.address, request.size))
        self._insert(request, stored)

    def unmap(self, request: DmaUnmap) -> None:
        """Forget the maps that lie within the request's range."""
        end = request.address + request.size
        if request.flags & DmaUnmap.ALL:
            gone, self.regions = self.regions, []
        else:
            there = self._between(request.address, end)
            gone = [region for region in there if request.address <= region.map.address and region.map.end <= end]
        for region in gone:
            if self.regions:
                del self.regions[bisect_left(self.regions, region.map.address, key=_address)]
            if region.stored:
                region.stored.release()

    def read(self, address: int, size: int) -> bytes:
        """Read `size` bytes at a guest physical address.

        :raises GuestMemoryError: not all of it lies in one shared map.
        """
        descriptor, offset = self._locate(address, size, DmaMap.READ)
        try:
            data = os.pread(descriptor.fileno(), size, offset)
        except OSError as error:
            raise GuestMemoryError(f"reading {address:#x}: {error.strerror}") from error
        if len(data) != size:
            raise GuestMemoryError(f"{size} bytes at {address:#x}: the memory has been cut short")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write at a guest physical address.

        :raises GuestMemoryError: not all of it lies in one shared, writable map.
        """
        descriptor, offset = self._locate(address, len(data), DmaMap.WRITE)
        number = descriptor.fileno()
        self.on_write(address, len(data))
        try:
            # hugetlbfs has no write(2), hence a mapping; its granularity is the page size that fstat reports.
            facts = os.fstat(number)
            if facts.st_size < offset + len(data):
                raise GuestMemoryError(f"{len(data)} bytes at {address:#x}: the memory has been cut short")
            page = facts.st_blksize
            start = offset // page * page
            length = min(-(-(offset - start + len(data)) // page) * page, facts.st_size - start)
            with mmap.mmap(number, length, offset=start) as window, memoryview(window) as view:
                source = os.memfd_create("nvmf_vfio", os.MFD_CLOEXEC)
                try:
                    os.write(source, data)
                    # The kernel copies: where the memory has been cut short this fails with EFAULT.
                    with view[offset - start : offset - start + len(data)] as target:
                        os.preadv(source, [target], 0)
                finally:
                    os.close(source)
        except (OSError, ValueError) as error:
            raise GuestMemoryError(f"writing {address:#x}: {error}") from error

    def _locate(self, address: int, size: int, access: int) -> tuple[Descriptor, int]:
        index = bisect_right(self.regions, address, key=_address) - 1
        if index >= 0:
            region = self.regions[index]
            inside = address + size <= region.map.end
            if inside and region.stored is not None and region.map.flags & access:
                return region.stored.descriptor, region.map.offset + address - region.map.address
        raise GuestMemoryError(f"{size} bytes at {address:#x} are not in the guest's shared memory")

    def to_json(self) -> Encoded:
        """The maps for the session's record.

        There may be thousands, in few descriptors, and one is added at a time: the text of each map is made once, and
        refers to its descriptor by number.
        """
        maps = ",".join(region.text for region in self.regions)
        return Encoded(f'{{"names":{json.dumps(list(self._numbers))},"maps":[{maps}]}}')

    def load_json(self, document: Any, stored: dict[str, StoredFd]) -> None:
        """Take over what `to_json` returned.

        :param document: decoded; or the list of an earlier version.
        :param stored: the descriptors by name.
        :raises KeyError: a field or a descriptor is missing.
        :raises ValueError: the document has another layout.
        """
        maps = document
        if isinstance(document, dict):
            maps = [[*place, document["names"][number]] for *place, number in document["maps"]]
        for flags, offset, address, size, name in maps:
            self._insert(DmaMap(flags, offset, address, size), stored[name].share() if name else None)

    def _insert(self, request: DmaMap, stored: StoredFd | None) -> None:
        if len(self._numbers) > len(self.regions) + _SPARE_NAMES:
            self._renumber()
        insort(self.regions, Region(request, stored, self._text(request, stored)))

    def _text(self, request: DmaMap, stored: StoredFd | None) -> str:
        number = self._numbers.setdefault(stored.name if stored else None, len(self._numbers))
        return f"[{request.flags},{request.offset},{request.address},{request.size},{number}]"

    def _renumber(self) -> None:
        """Number the names again: most are of descriptors that are gone."""
        self._numbers.clear()
        self.regions = [Region(r.map, r.stored, self._text(r.map, r.stored)) for r in self.regions]


def _address(region: Region) -> int:
    return region.map.address
