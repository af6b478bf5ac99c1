"""Payloads of vfio-user messages: one dataclass a message (VERSION has a module of its own), and which command carries
which.

Layouts are those of docs/interop/vfio-user.rst in QEMU's source and of include/vfio-user.h in libvfio-user, which
agree. Every `unpack` checks sizes and counts before it believes them and raises `ProtocolError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from nvmf_vfio.protocol.header import ADDRESS_SPACE, MAX_MESSAGE, Command, ProtocolError, take
from nvmf_vfio.protocol.version import Version


@dataclass(frozen=True, slots=True)
class DmaMap:
    """DMA_MAP: `size` bytes at guest physical `address` lie at `offset` of the descriptor sent along, if one is."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIQQQ")
    READ: ClassVar[int] = 1
    WRITE: ClassVar[int] = 2

    flags: int
    offset: int
    address: int
    size: int

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.LAYOUT.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        _argsz, flags, offset, address, size = take(cls.LAYOUT, body, "DMA_MAP")
        if size == 0 or address + size > ADDRESS_SPACE or offset + size > 1 << 63:
            raise ProtocolError(f"DMA_MAP: {size} bytes at {address:#x}, offset {offset:#x}: empty, or wraps")
        if flags & ~(cls.READ | cls.WRITE):
            raise ProtocolError(f"DMA_MAP: unknown flags {flags:#x}")
        return cls(flags, offset, address, size)

    @property
    def end(self) -> int:
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """DMA_UNMAP, request and reply. With `ALL`, address and size are zero."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIQQ")
    ALL: ClassVar[int] = 2

    flags: int
    address: int
    size: int

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.LAYOUT.size, self.flags, self.address, self.size)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
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
class DeviceInfo:
    """DEVICE_GET_INFO, request (counts zero) and reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")

    argsz: int
    flags: int = 0
    regions: int = 0
    irqs: int = 0

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.argsz, self.flags, self.regions, self.irqs)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        return cls(*take(cls.LAYOUT, body, "DEVICE_GET_INFO"))


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """DEVICE_GET_REGION_INFO, request and reply; `capabilities` is the chain behind the fixed part, as it came."""

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
        fixed = (self.argsz, self.flags, self.index, self.cap_offset, self.size, self.offset)
        return self.LAYOUT.pack(*fixed) + self.capabilities

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        argsz, flags, index, cap_offset, size, offset = take(cls.LAYOUT, body, "DEVICE_GET_REGION_INFO")
        return cls(argsz, flags, index, cap_offset, size, offset, bytes(body[cls.LAYOUT.size :]))


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """DEVICE_GET_REGION_IO_FDS, request and reply; `regions` holds `count` 40-byte descriptions in a reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")
    ENTRY: ClassVar[int] = 40

    argsz: int
    flags: int
    index: int
    count: int
    regions: bytes = b""

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.argsz, self.flags, self.index, self.count) + self.regions

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        argsz, flags, index, count = take(cls.LAYOUT, body, "DEVICE_GET_REGION_IO_FDS")
        regions = bytes(body[cls.LAYOUT.size :])
        if len(regions) % cls.ENTRY or (regions and len(regions) // cls.ENTRY > count):
            raise ProtocolError(f"DEVICE_GET_REGION_IO_FDS: {len(regions)} bytes for {count} entries")
        return cls(argsz, flags, index, count, regions)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """DEVICE_GET_IRQ_INFO, request and reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")

    argsz: int
    flags: int
    index: int
    count: int = 0

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.argsz, self.flags, self.index, self.count)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        return cls(*take(cls.LAYOUT, body, "DEVICE_GET_IRQ_INFO"))


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """DEVICE_SET_IRQS; eventfds travel as descriptors (linux/vfio.h, struct vfio_irq_set)."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIIII")
    DATA_NONE: ClassVar[int] = 0x1
    DATA_BOOL: ClassVar[int] = 0x2
    DATA_EVENTFD: ClassVar[int] = 0x4
    MASK: ClassVar[int] = 0x8
    UNMASK: ClassVar[int] = 0x10
    TRIGGER: ClassVar[int] = 0x20
    INDICES: ClassVar[int] = 5
    MAX_VECTORS: ClassVar[int] = 2048

    flags: int
    index: int
    start: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        fixed = (self.LAYOUT.size + len(self.data), self.flags, self.index, self.start, self.count)
        return self.LAYOUT.pack(*fixed) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        _argsz, flags, index, start, count = take(cls.LAYOUT, body, "DEVICE_SET_IRQS")
        data = bytes(body[cls.LAYOUT.size :])
        kind = flags & (cls.DATA_NONE | cls.DATA_BOOL | cls.DATA_EVENTFD)
        action = flags & (cls.MASK | cls.UNMASK | cls.TRIGGER)
        if kind.bit_count() != 1 or action.bit_count() != 1 or flags != kind | action:
            raise ProtocolError(f"DEVICE_SET_IRQS: flags {flags:#x}")
        if index >= cls.INDICES or start + count > cls.MAX_VECTORS:
            raise ProtocolError(f"DEVICE_SET_IRQS: index {index}, {count} vectors from {start}")
        if kind == cls.DATA_BOOL and len(data) != count:
            raise ProtocolError(f"DEVICE_SET_IRQS: {len(data)} booleans for {count} vectors")
        return cls(flags, index, start, count, data)


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """REGION_READ and REGION_WRITE, request and reply. `data` is empty in a read's request and a write's reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QII")

    offset: int
    region: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.offset, self.region, self.count) + self.data

    @classmethod
    def unpack(cls, body: bytes, *, with_data: bool) -> Self:
        """:param with_data: whether `count` bytes must follow (a write's request, a read's reply)."""
        offset, region, count = take(cls.LAYOUT, body, "region access")
        data = bytes(body[cls.LAYOUT.size :])
        if len(data) != (count if with_data else 0):
            raise ProtocolError(f"region access: {len(data)} bytes of data for a count of {count}")
        if offset + count > ADDRESS_SPACE or count > MAX_MESSAGE - 64:
            raise ProtocolError(f"region access: {count} bytes at {offset:#x}")
        return cls(offset, region, count, data)


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """REGION_WRITE_MULTI: several posted writes of at most eight bytes in one message."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<Q")
    ENTRY: ClassVar[struct.Struct] = struct.Struct("<QII8s")

    writes: tuple[RegionAccess, ...]

    def pack(self) -> bytes:
        entries = [self.ENTRY.pack(w.offset, w.region, w.count, w.data) for w in self.writes]
        return self.LAYOUT.pack(len(entries)) + b"".join(entries)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        (count,) = take(cls.LAYOUT, body, "REGION_WRITE_MULTI")
        if len(body) != cls.LAYOUT.size + count * cls.ENTRY.size:
            raise ProtocolError(f"REGION_WRITE_MULTI: {len(body)} bytes for {count} writes")
        writes = []
        for offset, region, size, data in cls.ENTRY.iter_unpack(body[cls.LAYOUT.size :]):
            if size > 8:
                raise ProtocolError(f"REGION_WRITE_MULTI: a write of {size} bytes")
            writes.append(RegionAccess(offset, region, size, data[:size]))
        return cls(tuple(writes))


@dataclass(frozen=True, slots=True)
class DmaAccess:
    """DMA_READ and DMA_WRITE, request and reply: the server reads or writes guest memory by message."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQ")

    address: int
    count: int
    data: bytes = b""

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.address, self.count) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        address, count = take(cls.LAYOUT, body, "DMA access")
        data = bytes(body[cls.LAYOUT.size :])
        if data and len(data) != count:
            raise ProtocolError(f"DMA access: {len(data)} bytes of data for a count of {count}")
        return cls(address, count, data)


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """DEVICE_FEATURE, request and reply (linux/vfio.h, struct vfio_device_feature)."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II")

    argsz: int
    flags: int
    data: bytes = b""

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.argsz, self.flags) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        argsz, flags = take(cls.LAYOUT, body, "DEVICE_FEATURE")
        return cls(argsz, flags, bytes(body[cls.LAYOUT.size :]))


@dataclass(frozen=True, slots=True)
class MigData:
    """MIG_DATA_READ and MIG_DATA_WRITE, request and reply."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II")

    argsz: int
    size: int
    data: bytes = b""

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.argsz, self.size) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        argsz, size = take(cls.LAYOUT, body, "migration data")
        data = bytes(body[cls.LAYOUT.size :])
        if data and len(data) != size:
            raise ProtocolError(f"migration data: {len(data)} bytes for a size of {size}")
        return cls(argsz, size, data)


@dataclass(frozen=True, slots=True)
class Reset:
    """DEVICE_RESET: no payload."""

    def pack(self) -> bytes:
        return b""

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        if body:
            raise ProtocolError(f"DEVICE_RESET: {len(body)} bytes of payload")
        return cls()


Request = (
    Version
    | DmaMap
    | DmaUnmap
    | DeviceInfo
    | RegionInfo
    | RegionIoFds
    | IrqInfo
    | SetIrqs
    | RegionAccess
    | RegionWriteMulti
    | DmaAccess
    | DeviceFeature
    | MigData
    | Reset
)

_REQUESTS: dict[Command, Any] = {
    Command.VERSION: Version.unpack,
    Command.DMA_MAP: DmaMap.unpack,
    Command.DMA_UNMAP: DmaUnmap.unpack,
    Command.DEVICE_GET_INFO: DeviceInfo.unpack,
    Command.DEVICE_GET_REGION_INFO: RegionInfo.unpack,
    Command.DEVICE_GET_REGION_IO_FDS: RegionIoFds.unpack,
    Command.DEVICE_GET_IRQ_INFO: IrqInfo.unpack,
    Command.DEVICE_SET_IRQS: SetIrqs.unpack,
    Command.REGION_READ: lambda body: RegionAccess.unpack(body, with_data=False),
    Command.REGION_WRITE: lambda body: RegionAccess.unpack(body, with_data=True),
    Command.DMA_READ: DmaAccess.unpack,
    Command.DMA_WRITE: DmaAccess.unpack,
    Command.DEVICE_RESET: Reset.unpack,
    Command.REGION_WRITE_MULTI: RegionWriteMulti.unpack,
    Command.DEVICE_FEATURE: DeviceFeature.unpack,
    Command.MIG_DATA_READ: MigData.unpack,
    Command.MIG_DATA_WRITE: MigData.unpack,
}


def decode_request(command: int, body: bytes) -> tuple[Command, Request]:
    """A request's command and payload.

    :raises ProtocolError: unknown command, or a payload that the specification does not allow.
    """
    try:
        known = Command(command)
    except ValueError:
        raise ProtocolError(f"unknown command {command}") from None
    request: Request = _REQUESTS[known](body)
    return known, request
