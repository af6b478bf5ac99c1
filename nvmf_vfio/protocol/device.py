"""Payloads about the device as a whole: what it has, its interrupts, its reset, its migration.

Layouts are those of docs/interop/vfio-user.rst in QEMU's source and of include/vfio-user.h in libvfio-user, which
agree; where they name a structure of the kernel's, it is linux/vfio.h's. Every `unpack` checks what it takes and raises
`ProtocolError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from nvmf_vfio.protocol.header import ProtocolError, take


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """DEVICE_GET_INFO, request (counts zero) and reply.

    vfio-user.rst, VFIO_USER_DEVICE_GET_INFO; vfio-user.h, `struct vfio_user_device_info`.

    :ivar argsz: bytes that the sender has room for, or would need.
    :ivar flags: VFIO_DEVICE_FLAGS_*.
    :ivar regions: how many regions the device has.
    :ivar irqs: how many kinds of interrupt it has.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")

    argsz: int
    flags: int = 0
    regions: int = 0
    irqs: int = 0

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        return self.LAYOUT.pack(self.argsz, self.flags, self.regions, self.irqs)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The description in a request or a reply.

        :raises ProtocolError: too short.
        """
        return cls(*take(cls.LAYOUT, body, "DEVICE_GET_INFO"))


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """DEVICE_GET_IRQ_INFO, request and reply.

    vfio-user.rst, VFIO_USER_DEVICE_GET_IRQ_INFO; linux/vfio.h, `struct vfio_irq_info`.

    :ivar argsz: bytes that the sender has room for, or would need.
    :ivar flags: VFIO_IRQ_INFO_*.
    :ivar index: kind of interrupt (VFIO_PCI_*_IRQ_INDEX).
    :ivar count: how many vectors it has; 0 in a request.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<IIII")

    argsz: int
    flags: int
    index: int
    count: int = 0

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        return self.LAYOUT.pack(self.argsz, self.flags, self.index, self.count)

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The description in a request or a reply.

        :raises ProtocolError: too short.
        """
        return cls(*take(cls.LAYOUT, body, "DEVICE_GET_IRQ_INFO"))


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """DEVICE_SET_IRQS: how vectors are signalled, or that they are. Eventfds come along as descriptors.

    vfio-user.rst, VFIO_USER_DEVICE_SET_IRQS; linux/vfio.h, `struct vfio_irq_set`.

    :ivar flags: one of `DATA_*` and one of `MASK`, `UNMASK`, `TRIGGER`.
    :ivar index: kind of interrupt (VFIO_PCI_*_IRQ_INDEX), below `INDICES`.
    :ivar start: the first vector.
    :ivar count: how many vectors; 0 with `DATA_NONE` is all of them.
    :ivar data: with `DATA_BOOL`, a byte for each vector; empty in the others.
    """

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
        """The payload of a request."""
        fixed = (self.LAYOUT.size + len(self.data), self.flags, self.index, self.start, self.count)
        return self.LAYOUT.pack(*fixed) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The vectors in a request.

        :raises ProtocolError: too short, flags that exclude each other, vectors that no PCI function has, or too few
            booleans.
        """
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
class Reset:
    """DEVICE_RESET: no payload (vfio-user.rst, VFIO_USER_DEVICE_RESET)."""

    def pack(self) -> bytes:
        """The empty payload."""
        return b""

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The request.

        :raises ProtocolError: there is a payload.
        """
        if body:
            raise ProtocolError(f"DEVICE_RESET: {len(body)} bytes of payload")
        return cls()


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """DEVICE_FEATURE, request and reply.

    vfio-user.rst, VFIO_USER_DEVICE_FEATURE; vfio-user.h, `struct vfio_user_device_feature`.

    :ivar argsz: bytes that the sender has room for, or would need.
    :ivar flags: the feature's number, and VFIO_DEVICE_FEATURE_GET, SET or PROBE.
    :ivar data: what the feature takes or returns, as it came.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II")

    argsz: int
    flags: int
    data: bytes = b""

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        return self.LAYOUT.pack(self.argsz, self.flags) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The feature in a request or a reply.

        :raises ProtocolError: too short.
        """
        argsz, flags = take(cls.LAYOUT, body, "DEVICE_FEATURE")
        return cls(argsz, flags, bytes(body[cls.LAYOUT.size :]))


@dataclass(frozen=True, slots=True)
class MigData:
    """MIG_DATA_READ and MIG_DATA_WRITE, request and reply.

    vfio-user.rst, VFIO_USER_MIG_DATA_READ and VFIO_USER_MIG_DATA_WRITE; vfio-user.h, `struct vfio_user_mig_data`.

    :ivar argsz: bytes that the sender has room for, or would need.
    :ivar size: bytes of migration data to read or write.
    :ivar data: `size` bytes in a write's request and a read's reply; empty in the others.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<II")

    argsz: int
    size: int
    data: bytes = b""

    def pack(self) -> bytes:
        """The payload of a request or a reply."""
        return self.LAYOUT.pack(self.argsz, self.size) + self.data

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """The data in a request or a reply.

        :raises ProtocolError: too short, or with data of another length than `size`.
        """
        argsz, size = take(cls.LAYOUT, body, "migration data")
        data = bytes(body[cls.LAYOUT.size :])
        if data and len(data) != size:
            raise ProtocolError(f"migration data: {len(data)} bytes for a size of {size}")
        return cls(argsz, size, data)
