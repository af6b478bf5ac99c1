"""Payloads about guest memory: maps of it, and access to it by message.

Layouts are those of docs/interop/vfio-user.rst in QEMU's source and of include/vfio-user.h in libvfio-user, which
agree. Addresses are guest physical, sizes and offsets are bytes. Every `unpack` checks what it takes and raises
`ProtocolError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from nvmf_vfio.protocol.header import ADDRESS_SPACE, ProtocolError, take


@dataclass(frozen=True, slots=True)
class DmaMap:
    """DMA_MAP: guest memory that the server may access, in the file whose descriptor comes along, if one does.

    vfio-user.rst, VFIO_USER_DMA_MAP; vfio-user.h, `struct vfio_user_dma_map`.

    :ivar flags: `READ`, `WRITE` or both: what the server may do.
    :ivar offset: where the memory begins in the file, in bytes.
    :ivar address: guest physical address.
    :ivar size: bytes, not zero.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIQQQ")
    READ: ClassVar[int] = 1
    WRITE: ClassVar[int] = 2

    flags: int
    offset: int
    address: int
    size: int

    def pack(self) -> bytes:
        """The payload of a request."""
        return self.LAYOUT.pack(self.LAYOUT.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The map in a request.

        :raises ProtocolError: too short, empty, beyond 64 bits, or with unknown flags.
        """
        _argsz, flags, offset, address, size = take(cls.LAYOUT, body, "DMA_MAP")
        if size == 0 or address + size > ADDRESS_SPACE or offset + size > 1 << 63:
            raise ProtocolError(f"DMA_MAP: {size} bytes at {address:#x}, offset {offset:#x}: empty, or wraps")
        if flags & ~(cls.READ | cls.WRITE):
            raise ProtocolError(f"DMA_MAP: unknown flags {flags:#x}")
        return cls(flags, offset, address, size)

    @property
    def end(self) -> int:
        """The first guest physical address behind the map."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """DMA_UNMAP, request and reply: memory that the server may not access any more.

    vfio-user.rst, VFIO_USER_DMA_UNMAP; vfio-user.h, `struct vfio_user_dma_unmap`.

    :ivar flags: 0, or `ALL`: every map.
    :ivar address: guest physical address; 0 with `ALL`.
    :ivar size: bytes; 0 with `ALL`.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIQQ")
    ALL: ClassVar[int] = 2

    flags: int
    address: int
    size: int

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        return self.LAYOUT.pack(self.LAYOUT.size, self.flags, self.address, self.size)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The range in a request.

        :raises ProtocolError: too short, beyond 64 bits, flags other than `ALL`, or a range beside it.
        """
        _argsz, flags, address, size = take(cls.LAYOUT, body, "DMA_UNMAP")
        if flags & ~cls.ALL:
            # GET_DIRTY_BITMAP needs migration, which SPDK's NVMe controllers do not offer.
            raise ProtocolError(f"DMA_UNMAP: unsupported flags {flags:#x}")
        if flags & cls.ALL and (address or size):
            raise ProtocolError("DMA_UNMAP: of everything, with an address or a size")
        if address + size > ADDRESS_SPACE:
            raise ProtocolError(f"DMA_UNMAP: {size} bytes at {address:#x} wrap")
        return cls(flags, address, size)


@dataclass(frozen=True, slots=True)
class DmaAccess:
    """DMA_READ and DMA_WRITE, request and reply: the server reads or writes guest memory by message.

    vfio-user.rst, VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE; vfio-user.h, `struct vfio_user_dma_region_access`.

    :ivar address: guest physical address.
    :ivar count: bytes to read or write.
    :ivar data: `count` bytes in a write's request and a read's reply; empty in the others.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQ")

    address: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        return self.LAYOUT.pack(self.address, self.count) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The access in a request or a reply.

        :raises ProtocolError: too short, or with data of another length than `count`.
        """
        address, count = take(cls.LAYOUT, body, "DMA access")
        data = bytes(body[cls.LAYOUT.size :])
        if data and len(data) != count:
            raise ProtocolError(f"DMA access: {len(data)} bytes of data for a count of {count}")
        return cls(address, count, data)
