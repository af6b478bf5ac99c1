"""Headers, commands and limits of vfio-user messages; for payloads see `nvmf_vfio.protocol.messages`.

Layouts are those of docs/interop/vfio-user.rst in QEMU's source (protocol version 0.1) and of include/vfio-user.h in
libvfio-user, which agree. All integers are little-endian, as both ends run on one machine.

Owns no socket and no descriptor: `wire` moves messages, `descriptors` owns what travels beside them. Every `unpack`
checks sizes and counts before it uses them, and raises `ProtocolError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, Self

MAX_MESSAGE = 0x10000 + 4096
"""Largest message taken from a guest (bytes). An NVMe function's regions are accessed a register or a page at a
time."""
MAX_TARGET_MESSAGE = 0x100000 + 4096
"""Largest message taken from a target: libvfio-user's VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE and its headers."""
MAX_DESCRIPTORS = 16
"""Most descriptors in one message."""
ADDRESS_SPACE = 1 << 64


class ProtocolError(Exception):
    """The peer sent a message that the specification does not allow."""


class Command(IntEnum):
    """Message commands (vfio-user.rst, "Commands"; vfio-user.h, `enum vfio_user_command`)."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


FROM_TARGET = frozenset({Command.DMA_READ, Command.DMA_WRITE})
"""The commands that a server may send; all others come from the client."""


class Flag(IntFlag):
    """Header flags (vfio-user.rst, "Header")."""

    REPLY = 0x1
    TYPE_MASK = 0xF
    NO_REPLY = 0x10
    ERROR = 0x20


def take(layout: struct.Struct, data: bytes, what: str) -> tuple[Any, ...]:
    """The fields at the start of `data`.

    :param what: the message's name, for the error.
    :raises ProtocolError: `data` is too short for them.
    """
    if len(data) < layout.size:
        raise ProtocolError(f"{what}: {len(data)} bytes, {layout.size} needed")
    return layout.unpack_from(data)


@dataclass(frozen=True, slots=True)
class Header:
    """The 16 bytes in front of every message (vfio-user.rst, "Header"; vfio-user.h, `struct vfio_user_header`).

    :ivar id: chosen by the sender of a request, repeated in its reply.
    :ivar command: a `Command`, or a number that is none.
    :ivar size: bytes of the whole message, these 16 included.
    :ivar flags: `Flag` bits.
    :ivar error: an errno, in a reply with `Flag.ERROR`.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<HHIII")
    SIZE: ClassVar[int] = LAYOUT.size

    id: int
    command: int
    size: int
    flags: int = 0
    error: int = 0

    def pack(self) -> bytes:
        """The header as it is sent."""
        return self.LAYOUT.pack(self.id, self.command, self.size, self.flags, self.error)

    @classmethod
    def unpack(cls, data: bytes, *, limit: int) -> Self:
        """The header at the start of `data`.

        :param limit: the largest message to accept, in bytes.
        :raises ProtocolError: too short, a size below 16 or above `limit`, or an unknown type.
        """
        header = cls(*take(cls.LAYOUT, data, "header"))
        if not cls.SIZE <= header.size <= limit:
            raise ProtocolError(f"message of {header.size} bytes; {cls.SIZE} to {limit} are allowed")
        if header.flags & Flag.TYPE_MASK > Flag.REPLY:
            raise ProtocolError(f"unknown message type {header.flags & Flag.TYPE_MASK}")
        return header

    @property
    def is_reply(self) -> bool:
        """Whether this is a reply; otherwise it is a request."""
        return self.flags & Flag.TYPE_MASK == Flag.REPLY

    @property
    def wants_reply(self) -> bool:
        """Whether this is a request that must be answered."""
        return not self.is_reply and not self.flags & Flag.NO_REPLY
