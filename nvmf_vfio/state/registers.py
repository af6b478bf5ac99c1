"""The NVMe registers and queue entries that recovery needs, by their names in the NVM Express Base Specification 1.4
(2.0 for CAP.CRMS and CRTO).

Owns layouts and arithmetic only: no socket, no memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum


class Register(IntEnum):
    """Offsets in BAR0 (section 3.1)."""

    CAP = 0x00
    VS = 0x08
    INTMS = 0x0C
    INTMC = 0x10
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30
    CRTO = 0x68


BAR0 = 0
"""The region that holds the registers (linux/vfio.h, VFIO_PCI_BAR0_REGION_INDEX)."""
DOORBELLS = 0x1000
"""Offset of the first doorbell (section 3.1.24)."""
BEGINS = 1 << 31
"""In a doorbell of a disabled controller, with a queue's position: it goes on there (our patch 0083 of SPDK)."""
FORCED_BITS = {3: 0xFF, 7: 0x08, Register.CRTO: 0xFF, Register.CRTO + 1: 0xFF}
"""Bits that a guest always reads as 1, by their byte in BAR0: how long to wait for CSTS.RDY, in units of 500 ms.

CAP.TO (bits 31:24) can say 127.5 s at most. CAP.CRMS.CRWMS (bit 59) says that CRTO.CRWMT (bits 15:0) holds the longer
one: 32,767 s (Base Specification 2.0, sections 3.1.3.1 and 3.1.3.22). Linux 6.0 and later use it, others use CAP.TO.
"""

CC_EN = 0x1
CC_SHN_MASK = 0xC000
CSTS_RDY = 0x1
CSTS_CFS = 0x2
CSTS_SHST_COMPLETE = 0x8

SQE_SIZE = 64
CQE_SIZE = 16
OPC_ASYNC_EVENT_REQUEST = 0x0C
OPC_DOORBELL_BUFFER_CONFIG = 0x7C
STATEFUL_OPCODES = frozenset({0x00, 0x01, 0x04, 0x05, 0x09, OPC_DOORBELL_BUFFER_CONFIG})
"""Opcodes of the admin command set (section 5). Stateful are those that leave something behind in the controller:
create and delete submission and completion queues, Set Features, Doorbell Buffer Config."""


@dataclass(frozen=True, slots=True)
class AdminQueues:
    """AQA, ASQ and ACQ decoded: guest physical addresses, and sizes in entries (sections 3.1.8 to 3.1.10)."""

    submission: int
    submission_size: int
    completion: int
    completion_size: int

    @classmethod
    def decode(cls, aqa: int, asq: int, acq: int) -> AdminQueues:
        """The queues that these register values describe; reserved bits are left out."""
        mask = ~0xFFF
        return cls(asq & mask, (aqa & 0xFFF) + 1, acq & mask, (aqa >> 16 & 0xFFF) + 1)


def persistent_internal_error(command_id: int, submission_head: int, phase: int) -> bytes:
    """A completion of an Asynchronous Event Request that reports an error: persistent internal error.

    Section 5.2.1, figures 147 and 148: dword 0 holds the log page (01h, Error Information) in bits 23:16, the
    information (03h, Persistent Internal Error) in 15:8 and the type (0h, Error status) in 2:0.

    :param phase: the Phase Tag (0 or 1) that marks this slot as new.
    """
    dword0 = 0x01 << 16 | 0x03 << 8 | 0x0
    return struct.pack("<IIHHHH", dword0, 0, submission_head, 0, command_id, phase)


def internal_error(command_id: int, submission_head: int, phase: int) -> bytes:
    """A completion with the generic status Internal Error, 06h, which a driver may try again (section 4.6.1.2.1)."""
    return struct.pack("<IIHHHH", 0, 0, submission_head, 0, command_id, 0x06 << 1 | phase)


def command_of(entry: bytes) -> tuple[int, int]:
    """Opcode and command identifier of a submission queue entry (section 4.2, figure 104)."""
    opcode, _flags, identifier = struct.unpack_from("<BBH", entry)
    return opcode, identifier


def completion_status(entry: bytes) -> int:
    """The Status Field of a completion queue entry, without its phase tag; 0 is success (section 4.6.1)."""
    (status,) = struct.unpack_from("<H", entry, 14)
    return int(status) >> 1


def completion_of(entry: bytes) -> tuple[int, int]:
    """Command identifier and phase tag of a completion queue entry (section 4.6)."""
    identifier, status = struct.unpack_from("<HH", entry, 12)
    return identifier, status & 1
