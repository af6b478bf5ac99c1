"""What DEVICE_FEATURE carries when a device migrates: its states, and the log of the pages that it has written.

Layouts are those of include/vfio-user.h in libvfio-user; they name structures of linux/vfio.h, whose numbers these are.
Every `unpack` checks what it takes and raises `ProtocolError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

from nvmf_vfio.protocol.header import ADDRESS_SPACE, ProtocolError, take

PAGE = 4096
"""The granularity of the log, in bytes. QEMU on x86-64 asks for no other."""

INDEX_MASK = 0xFFFF
GET = 1 << 16
SET = 1 << 17
PROBE = 1 << 18

STOP_COPY = 1 << 0
P2P = 1 << 1
"""What `Feature.MIGRATION` says that a device can do (VFIO_MIGRATION_*)."""

_MAX_RANGES = 64


class Feature(IntEnum):
    """Features of a device that have to do with its migration (VFIO_DEVICE_FEATURE_*)."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9


class DeviceState(IntEnum):
    """States of a device that migrates (linux/vfio.h, `enum vfio_device_mig_state`)."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5


@dataclass(frozen=True, slots=True)
class MigState:
    """MIG_DEVICE_STATE: the state that a device has, or is to have. No descriptor comes with it over a socket.

    vfio-user.h, `struct vfio_user_device_feature_mig_state`.

    :ivar state: which one.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<Ii")
    _NO_DESCRIPTOR: ClassVar[int] = -1

    state: DeviceState

    def pack(self) -> bytes:
        """The feature's data."""
        return self.LAYOUT.pack(self.state, self._NO_DESCRIPTOR)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The state in a request.

        :raises ProtocolError: too short, or none that this end knows.
        """
        number, _descriptor = take(cls.LAYOUT, data, "MIG_DEVICE_STATE")
        try:
            return cls(DeviceState(number))
        except ValueError:
            raise ProtocolError(f"MIG_DEVICE_STATE: state {number}") from None


def check_logging_ranges(data: bytes) -> None:
    """Check a DMA_LOGGING_START (vfio-user.h, `struct vfio_user_device_feature_dma_logging_control`).

    :raises ProtocolError: another page size, or fewer ranges than it announces, or ones that are none.
    """
    head, entry = struct.Struct("<QII"), struct.Struct("<QQ")
    page, count, _reserved = take(head, data, "DMA_LOGGING_START")
    if page != PAGE or count > _MAX_RANGES or len(data) < head.size + count * entry.size:
        raise ProtocolError(f"DMA_LOGGING_START: pages of {page} bytes, {count} ranges in {len(data)} bytes")
    for address, length in entry.iter_unpack(data[head.size : head.size + count * entry.size]):
        if not length or address + length > ADDRESS_SPACE:
            raise ProtocolError(f"DMA_LOGGING_START: {length} bytes at {address:#x}")


@dataclass(frozen=True, slots=True)
class LoggingReport:
    """DMA_LOGGING_REPORT: which pages of a range were written since the last report.

    vfio-user.h, `struct vfio_user_device_feature_dma_logging_report`.

    :ivar address: guest physical address of the first byte.
    :ivar length: bytes.
    :ivar bitmap: in a reply, a bit a page, the first page in the lowest; whole 64-bit words.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QQQ")

    address: int
    length: int
    bitmap: bytes = b""

    @property
    def bitmap_size(self) -> int:
        """How many bytes the bitmap of this range has."""
        return -(-self.length // (PAGE * 64)) * 8

    def pack(self) -> bytes:
        """The feature's data."""
        return self.LAYOUT.pack(self.address, self.length, PAGE) + self.bitmap

    @classmethod
    def unpack(cls, data: bytes, *, most: int) -> Self:
        """The range in a request, or the report in a reply.

        :param most: bytes that the bitmap may have.
        :raises ProtocolError: too short, another page size, no whole pages, or more than fits into a reply.
        """
        address, length, page = take(cls.LAYOUT, data, "DMA_LOGGING_REPORT")
        report = cls(address, length, bytes(data[cls.LAYOUT.size :]))
        if page != PAGE or address % PAGE or length % PAGE or not length or address + length > ADDRESS_SPACE:
            raise ProtocolError(f"DMA_LOGGING_REPORT: {length} bytes at {address:#x} in pages of {page}")
        if report.bitmap_size > most:
            raise ProtocolError(f"DMA_LOGGING_REPORT: {report.bitmap_size} bytes of bitmap, at most {most}")
        return report
