"""Reservations of a remote's namespace: NVMe commands that go through `bdev_nvme_send_cmd` as they are.

Owns the bytes of these commands and of their answers. What they are sent for is `nvmuser.reconcile.reservations`'.
Sources: NVM Express Base Specification 2.0, 7.2 to 7.5 (reservation commands) and 5.17 (Identify).
"""

from __future__ import annotations

import base64
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from nvmuser.rpc.methods.request import Request

WRITE_EXCLUSIVE = 1
"""Reservation type: everybody may read, the holder alone may write."""
_IDENTIFY, _REGISTER, _REPORT, _ACQUIRE = 0x06, 0x0D, 0x0E, 0x11
_PREEMPT_AND_ABORT = 2
_PERSISTENT = 3 << 30
"""CPTPL of Reservation Register: registrations and reservations outlive a loss of power."""
_IDENTIFY_BYTES = 4096
_RESCAP = 31
"""Offset in Identify Namespace's data: Reservation Capabilities."""
_HEADER, _REGISTRANT = 64, 64
"""Bytes of the extended data structure of Reservation Report."""
_REPORT_BYTES = 4096


@dataclass(frozen=True)
class Registrant:
    """A host that is registered at a namespace."""

    host_id: str
    """A UUID."""
    key: int
    holder: bool
    """It has the reservation."""


@dataclass(frozen=True)
class Report:
    """Who is registered at a namespace."""

    kind: int
    """Type of the reservation; 0 where nobody has one."""
    registrants: tuple[Registrant, ...] = ()

    @property
    def holder(self) -> Registrant | None:
        """Who has the reservation; None where nobody has."""
        return next((one for one in self.registrants if one.holder), None)

    def of(self, host_id: str) -> Registrant | None:
        """The registration of a host."""
        return next((one for one in self.registrants if one.host_id == host_id), None)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """From the extended data structure."""
        kind, count = struct.unpack_from("<BH", data, 4)
        found = []
        for start in range(_HEADER, min(_HEADER + count * _REGISTRANT, len(data) - _REGISTRANT + 1), _REGISTRANT):
            status, key = struct.unpack_from("<2xB5xQ", data, start)
            host = uuid.UUID(bytes=data[start + 16 : start + 32])
            found.append(Registrant(str(host), key, bool(status & 1)))
        return cls(kind, tuple(found))


@dataclass(frozen=True)
class Completion:
    """How a command ended."""

    status_type: int
    status: int
    data: bytes = b""

    @property
    def ok(self) -> bool:
        """Successful Completion."""
        return (self.status_type, self.status) == (0, 0)

    @classmethod
    def parse(cls, reply: Mapping[str, str]) -> Self:
        """From the reply of `bdev_nvme_send_cmd`."""
        (status,) = struct.unpack_from("<14xH", base64.urlsafe_b64decode(reply["cpl"]))
        data = base64.urlsafe_b64decode(reply["data"]) if "data" in reply else b""
        return cls(status >> 9 & 0x7, status >> 1 & 0xFF, data)


def identify_namespace(remote: str, nsid: int) -> Request:
    """What a namespace can do; `capabilities` reads the answer.

    :param remote: SPDK's name of the remote, as in the others of this module.
    """
    return _send(remote, "admin", _command(_IDENTIFY, nsid), data_len=_IDENTIFY_BYTES)


def offers_reservations(data: bytes) -> bool:
    """Does Identify Namespace's data say that one may be held with WRITE_EXCLUSIVE? (RESCAP, bit 1)"""
    return bool(data[_RESCAP] & 0x2)


def outlives_power(data: bytes) -> bool:
    """Does it say that reservations can outlive a loss of power? (RESCAP, bit 0)"""
    return bool(data[_RESCAP] & 0x1)


def report(remote: str, nsid: int) -> Request:
    """Who is registered and who holds; `Report` reads the answer. In the extended form, with 128-bit host ids."""
    return _send(remote, "io", _command(_REPORT, nsid, _REPORT_BYTES // 4 - 1, 1), data_len=_REPORT_BYTES)


def register(remote: str, nsid: int, key: int, *, persistent: bool) -> Request:
    """Register this host with a key."""
    return _send(remote, "io", _command(_REGISTER, nsid, _PERSISTENT if persistent else 0), struct.pack("<QQ", 0, key))


def unregister(remote: str, nsid: int, key: int) -> Request:
    """Forget this host, and release what it holds."""
    return _send(remote, "io", _command(_REGISTER, nsid, 1), struct.pack("<QQ", key, 0))


def acquire(remote: str, nsid: int, key: int) -> Request:
    """Take a reservation that nobody holds."""
    return _send(remote, "io", _command(_ACQUIRE, nsid, WRITE_EXCLUSIVE << 8), struct.pack("<QQ", key, 0))


def preempt_and_abort(remote: str, nsid: int, key: int, other: int) -> Request:
    """Take the reservation from who is registered with the key `other`, and end what he has in flight; forget him."""
    action = WRITE_EXCLUSIVE << 8 | _PREEMPT_AND_ABORT
    return _send(remote, "io", _command(_ACQUIRE, nsid, action), struct.pack("<QQ", key, other))


def _command(opcode: int, nsid: int, cdw10: int = 0, cdw11: int = 0) -> bytes:
    return struct.pack("<BBHI32xII16x", opcode, 0, 0, nsid, cdw10, cdw11)


def _send(
    remote: str, queue: Literal["admin", "io"], command: bytes, data: bytes = b"", *, data_len: int = 0
) -> Request:
    """A command as it is (module/bdev/nvme/nvme_rpc.c), by a path that has a connection (our patch).

    Errors: ENXIO, in words, where no path has one.
    """
    params: dict[str, Any] = {"name": remote, "cmd_type": queue, "cmdbuf": base64.urlsafe_b64encode(command).decode()}
    if data:
        params |= {"data_direction": "h2c", "data": base64.urlsafe_b64encode(data).decode()}
    else:
        params |= {"data_direction": "c2h", "data_len": data_len}
    return Request("bdev_nvme_send_cmd", params)
