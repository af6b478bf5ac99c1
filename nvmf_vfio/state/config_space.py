"""Configuration space of a controller as its guest knows it: what was written to it, and what was read from it.

Owns both, and the one thing that a guest's QEMU may set without writing it: that MSI-X is enabled.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from nvmf_vfio.protocol.messages import RegionAccess
from nvmf_vfio.state.memory import Refused

CONFIG = 7
"""Region index of configuration space (linux/vfio.h, VFIO_PCI_CONFIG_REGION_INDEX)."""
SIZE = 4096
_MAX_WRITES = 512
_STATUS, _CAPABILITIES_LIST = 0x06, 0x10
_CAPABILITIES = 0x34
_MOST_CAPABILITIES = 48
_MSIX = 0x11
_MSIX_ENABLE = 0x8000
"""In Message Control, the word behind the capability's header (PCI Express Base Specification, section 7.7.2.2)."""


class ConfigSpace:
    """See the module."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.writes: dict[tuple[int, int], bytes] = {}

    def check(self, write: RegionAccess) -> None:
        """Check whether a write may be passed on.

        :raises Refused: it reaches over the end, or into another doubleword, as none on PCI does. And libvfio-user
            copies what begins in a capability, however long, into one on its stack (`cap_write_msix`).
        """
        if write.offset // 4 != (write.offset + write.count - 1) // 4 or write.offset + write.count > SIZE:
            raise Refused(errno.EINVAL, f"write of {write.count} bytes at {write.offset:#x} of configuration space")

    def remember(self, write: RegionAccess) -> None:
        """Remember a write that has taken effect."""
        key = (write.offset, write.count)
        self.writes.pop(key, None)
        if len(self.writes) < _MAX_WRITES:
            self.writes[key] = write.data
        self.learn(write.offset, write.data)

    def learn(self, offset: int, data: bytes) -> None:
        """Take over what a target has there, if all of it has been read before."""
        if offset + len(data) <= len(self.content):
            self.content[offset : offset + len(data)] = data

    def replay(self, *, with_msix: bool) -> Iterator[RegionAccess]:
        """The writes that give a new target the guest's configuration.

        :param with_msix: whether MSI-X is enabled. QEMU does not write that when a guest has arrived
            (`vfio_pci_load_config`); SPDK would signal nothing, and a driver that goes on does not write it either.
        """
        for (offset, count), data in self.writes.items():
            yield RegionAccess(offset, CONFIG, count, data)
        if with_msix and (control := self.msix_control()) is not None:
            value = int.from_bytes(self.content[control : control + 2], "little") | _MSIX_ENABLE
            yield RegionAccess(control, CONFIG, 2, value.to_bytes(2, "little"))

    def msix_control(self) -> int | None:
        """Where MSI-X is enabled, if that is known."""
        if len(self.content) < SIZE or not self.content[_STATUS] & _CAPABILITIES_LIST:
            return None
        at = self.content[_CAPABILITIES]
        for _ in range(_MOST_CAPABILITIES):
            if not at:
                return None
            if self.content[at] == _MSIX:
                return at + 2
            at = self.content[at + 1]
        return None

    def to_json(self) -> dict[str, Any]:
        """For the session's record."""
        writes = [[offset, size, data.hex()] for (offset, size), data in self.writes.items()]
        return {"config_writes": writes, "config_space": self.content.hex()}

    def load_json(self, document: dict[str, Any]) -> None:
        """Take over what `to_json` returned.

        :raises KeyError: a field is missing.
        :raises ValueError: a field has another layout.
        """
        for offset, size, data in document["config_writes"]:
            self.writes[(offset, size)] = bytes.fromhex(data)
        self.content = bytearray.fromhex(document["config_space"])
