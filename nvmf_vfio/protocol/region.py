"""Payloads about a device's regions: what they are, and access to them.

Layouts are those of docs/interop/vfio-user.rst in QEMU's source and of include/vfio-user.h in libvfio-user, which
agree. Regions are numbered as in linux/vfio.h (VFIO_PCI_*_REGION_INDEX); offsets, sizes and counts are bytes. Every
`unpack` checks what it takes and raises `ProtocolError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from nvmf_vfio.protocol.header import ADDRESS_SPACE, MAX_MESSAGE, ProtocolError, take


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """DEVICE_GET_REGION_INFO, request and reply.

    vfio-user.rst, VFIO_USER_DEVICE_GET_REGION_INFO; linux/vfio.h, `struct vfio_region_info`.

    :ivar argsz: bytes that the sender has room for, or would need.
    :ivar flags: VFIO_REGION_INFO_FLAG_*; `MMAP` (the region can be mapped) and `CAPS` (capabilities follow) among them.
    :ivar index: the region.
    :ivar cap_offset: of the first capability, in bytes from the payload's start; 0 when there is none.
    :ivar size: bytes; 0 in a request.
    :ivar offset: of the region in the descriptor that comes along, in bytes.
    :ivar capabilities: the chain behind the fixed part, as it came.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIIQQ")
    MMAP: ClassVar[int] = 4
    CAPS: ClassVar[int] = 8

    argsz: int
    flags: int
    index: int
    cap_offset: int = 0
    size: int = 0
    offset: int = 0
    capabilities: bytes = b""

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        fixed = (self.argsz, self.flags, self.index, self.cap_offset, self.size, self.offset)
        return self.LAYOUT.pack(*fixed) + self.capabilities

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The description in a request or a reply. Capabilities are not looked into.

        :raises ProtocolError: too short.
        """
        argsz, flags, index, cap_offset, size, offset = take(cls.LAYOUT, body, "DEVICE_GET_REGION_INFO")
        return cls(argsz, flags, index, cap_offset, size, offset, bytes(body[cls.LAYOUT.size :]))


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """DEVICE_GET_REGION_IO_FDS, request and reply: eventfds that stand for writes to parts of a region.

    vfio-user.rst, VFIO_USER_DEVICE_GET_REGION_IO_FDS; vfio-user.h, `struct vfio_user_region_io_fds_request` and
    `struct vfio_user_region_io_fds_reply`.

    :ivar argsz: bytes that the sender has room for, or would need.
    :ivar flags: 0.
    :ivar index: the region.
    :ivar count: how many descriptions follow; 0 in a request.
    :ivar regions: descriptions of `ENTRY` bytes each, as they came.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")
    ENTRY: ClassVar[int] = 40

    argsz: int
    flags: int
    index: int
    count: int
    regions: bytes = b""

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        return self.LAYOUT.pack(self.argsz, self.flags, self.index, self.count) + self.regions

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The descriptions in a request or a reply.

        :raises ProtocolError: too short, an entry that is cut, or more entries than `count`.
        """
        argsz, flags, index, count = take(cls.LAYOUT, body, "DEVICE_GET_REGION_IO_FDS")
        regions = bytes(body[cls.LAYOUT.size :])
        if len(regions) % cls.ENTRY or (regions and len(regions) // cls.ENTRY > count):
            raise ProtocolError(f"DEVICE_GET_REGION_IO_FDS: {len(regions)} bytes for {count} entries")
        return cls(argsz, flags, index, count, regions)


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """REGION_READ and REGION_WRITE, request and reply.

    vfio-user.rst, VFIO_USER_REGION_READ and VFIO_USER_REGION_WRITE; vfio-user.h, `struct vfio_user_region_access`.

    :ivar offset: in the region, in bytes.
    :ivar region: its index.
    :ivar count: bytes to read or write.
    :ivar data: `count` bytes in a write's request and a read's reply; empty in the others.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QII")

    offset: int
    region: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        return self.LAYOUT.pack(self.offset, self.region, self.count) + self.data

    @classmethod
    def unpack(cls, body: bytes, *, with_data: bool) -> Self:
        """The access in a request or a reply.

        :param with_data: whether `count` bytes must follow (a write's request, a read's reply).
        :raises ProtocolError: too short, data of another length, or beyond 64 bits or what fits a message.
        """
        offset, region, count = take(cls.LAYOUT, body, "region access")
        data = bytes(body[cls.LAYOUT.size :])
        if len(data) != (count if with_data else 0):
            raise ProtocolError(f"region access: {len(data)} bytes of data for a count of {count}")
        if offset + count > ADDRESS_SPACE or count > MAX_MESSAGE - 64:
            raise ProtocolError(f"region access: {count} bytes at {offset:#x}")
        return cls(offset, region, count, data)


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """REGION_WRITE_MULTI: several posted writes of at most eight bytes in one message.

    vfio-user.rst, VFIO_USER_REGION_WRITE_MULTI.

    :ivar writes: in the order in which they take effect.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<Q")
    ENTRY: ClassVar[struct.Struct] = struct.Struct("<QII8s")

    writes: tuple[RegionAccess, ...]

    def pack(self) -> bytes:
        """The payload of a request."""
        entries = [self.ENTRY.pack(w.offset, w.region, w.count, w.data) for w in self.writes]
        return self.LAYOUT.pack(len(entries)) + b"".join(entries)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The writes in a request.

        :raises ProtocolError: another length than its count says, or a write of more than eight bytes.
        """
        (count,) = take(cls.LAYOUT, body, "REGION_WRITE_MULTI")
        if len(body) != cls.LAYOUT.size + count * cls.ENTRY.size:
            raise ProtocolError(f"REGION_WRITE_MULTI: {len(body)} bytes for {count} writes")
        writes = []
        for offset, region, size, data in cls.ENTRY.iter_unpack(body[cls.LAYOUT.size :]):
            if size > 8:
                raise ProtocolError(f"REGION_WRITE_MULTI: a write of {size} bytes")
            writes.append(RegionAccess(offset, region, size, data[:size]))
        return cls(tuple(writes))
