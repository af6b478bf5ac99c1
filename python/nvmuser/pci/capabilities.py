"""PCI capabilities as a device declares them, and as they lie in configuration space.

Owns the layouts (the specifications that each names) and the limits. libvfio-user decides where in configuration space
they lie, and what writes to them do (vfu_pci_add_capability); it handles all but the vendor's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Protocol

from nvmuser.errors import UsageError
from nvmuser.pci.bars import Bar, Space

_MSI_VECTORS = (1, 2, 4, 8, 16, 32)
_MSIX_VECTORS = 2048
_MSIX_ENTRY = 16
_VENDOR_MAX = 160
"""More than this leaves no room in 256 bytes for the header and the other capabilities."""


class Capability(Protocol):
    """Something that lies in configuration space."""

    @property
    def read_only(self) -> bool:
        """Whether guests may not write to it."""

    def pack(self) -> bytes:
        """Its bytes, from the header on; libvfio-user fills in the pointer to the next one."""


@dataclass(frozen=True, slots=True)
class PowerManagement:
    """PCI Bus Power Management Interface Specification 1.2: D0 and D3hot, without PME#.

    :param keeps_state: No_Soft_Reset: going from D3hot to D0 resets nothing.
    """

    ID: ClassVar[int] = 0x01
    keeps_state: bool = True
    read_only: bool = False

    def pack(self) -> bytes:
        """Its 8 bytes (3.2, "Register Definitions")."""
        return struct.pack("<BBHHBB", self.ID, 0, 0x3, self.keeps_state << 3, 0, 0)


@dataclass(frozen=True, slots=True)
class Msi:
    """PCI Local Bus Specification 3.0, 6.8.1: 64-bit addresses, a mask bit for each vector.

    :raises UsageError: the number of vectors is not a power of two from 1 to 32.
    """

    ID: ClassVar[int] = 0x05
    vectors: int = 1
    read_only: bool = False

    def __post_init__(self) -> None:
        if self.vectors not in _MSI_VECTORS:
            raise UsageError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {self.vectors}")

    def pack(self) -> bytes:
        """Its 24 bytes, with interrupts disabled."""
        control = (self.vectors.bit_length() - 1) << 1 | 1 << 7 | 1 << 8
        return struct.pack("<BBHIIHHII", self.ID, 0, control, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class MsiX:
    """PCI Local Bus Specification 3.0, 6.8.2: a table of vectors and an array of pending bits, in memory BARs.

    QEMU keeps table and array itself; to other clients they are ordinary parts of their BARs.

    :param pending_bar: None: the table's.
    :param pending_offset: None: right behind the table.
    :raises UsageError: the number of vectors is out of range, or an offset (in bytes) is no multiple of 8.
    """

    ID: ClassVar[int] = 0x11
    vectors: int
    table_bar: int
    table_offset: int = 0
    pending_bar: int | None = None
    pending_offset: int | None = None
    read_only: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.vectors <= _MSIX_VECTORS:
            raise UsageError(f"MSI-X has 1 to {_MSIX_VECTORS} vectors, not {self.vectors}")
        if self.table_offset % 8 or self._pending[1] % 8:
            raise UsageError("MSI-X: table and pending bits lie at multiples of 8")

    @property
    def _table(self) -> tuple[int, int, int]:
        return self.table_bar, self.table_offset, self.vectors * _MSIX_ENTRY

    @property
    def _pending(self) -> tuple[int, int, int]:
        bar = self.table_bar if self.pending_bar is None else self.pending_bar
        behind = self.table_offset + self.vectors * _MSIX_ENTRY
        return bar, behind if self.pending_offset is None else self.pending_offset, (self.vectors + 63) // 64 * 8

    def check(self, bars: tuple[Bar, ...]) -> None:
        """Check the places of table and pending bits against a device's BARs.

        :raises UsageError: they are not within a memory BAR, or they overlap.
        """
        sizes = {bar.index: bar.size for bar in bars if bar.space is Space.MEMORY}
        for what, (bar, offset, size) in (("table", self._table), ("pending bits", self._pending)):
            if offset + size > sizes.get(bar, 0):
                raise UsageError(f"MSI-X: {size} bytes of {what} at {offset:#x} are not within a memory BAR {bar}")
        (bar, offset, size), (other, start, length) = self._table, self._pending
        if bar == other and offset < start + length and start < offset + size:
            raise UsageError("MSI-X: table and pending bits overlap")

    def pack(self) -> bytes:
        """Its 12 bytes, with interrupts disabled."""
        table, pending = self._table, self._pending
        return struct.pack("<BBHII", self.ID, 0, self.vectors - 1, table[1] | table[0], pending[1] | pending[0])


@dataclass(frozen=True, slots=True)
class PciExpress:
    """PCI Express Base Specification 2.0, 7.8: an endpoint. The device then has 4096 bytes of configuration space.

    :param function_reset: it takes a function-level reset (`Reset.FUNCTION`).
    """

    ID: ClassVar[int] = 0x10
    SIZE: ClassVar[int] = 0x3C
    function_reset: bool = True
    read_only: bool = False

    def pack(self) -> bytes:
        """Its 60 bytes."""
        # Version 2, type 0 (endpoint); role-based error reporting; a link of 2.5 GT/s and one lane, in both registers.
        capabilities = 1 << 15 | self.function_reset << 28
        head = struct.pack("<BBHIHHIHH", self.ID, 0, 0x2, capabilities, 0, 0, 0x11, 0, 0x11)
        return head.ljust(self.SIZE, b"\0")


@dataclass(frozen=True, slots=True)
class Vendor:
    """PCI Local Bus Specification 3.0, 6.8.3 and appendix H: any bytes, which guests may write to or not.

    :raises UsageError: the data is longer than 160 bytes.
    """

    ID: ClassVar[int] = 0x09
    data: bytes
    read_only: bool = True

    def __post_init__(self) -> None:
        if len(self.data) > _VENDOR_MAX:
            raise UsageError(f"a vendor's capability holds {_VENDOR_MAX} bytes at most, not {len(self.data)}")

    def pack(self) -> bytes:
        """The header of 3 bytes, and the data."""
        return struct.pack("<BBB", self.ID, 0, 3 + len(self.data)) + self.data
