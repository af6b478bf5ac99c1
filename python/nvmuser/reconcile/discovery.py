"""What a discovery service offers: one NVMe/TCP connection to its admin queue, and its log of subsystems.

Owns that conversation and the form of the log. Nothing is attached. Sources: NVM Express Base Specification 2.0, 5.16.1
(Discovery Log Page) and 6 (fabrics commands); NVMe TCP Transport Specification 1.0 (PDUs).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from dataclasses import asdict, dataclass
from typing import Any, Self

from nvmuser.errors import RpcConnectionError, TargetError
from nvmuser.hostfs.host_identity import HostIdentity
from nvmuser.reconcile import fabrics

NQN = "nqn.2014-08.org.nvmexpress.discovery"
"""Well-known (Base 2.0, 4.5)."""
PORT = 8009
"""IANA's for discovery; many stores serve it at 4420 as well."""
_DEADLINE_S = 10.0
_GET_LOG_PAGE, _LOG = 0x02, 0x70
_CC, _CSTS = 0x14, 0x1C
_ENABLE = 0x00460001
"""Controller Configuration: enabled, with entries of 64 and 16 bytes."""
_HEADER, _ENTRY = 1024, 1024
_MOST = 256
"""Entries that are read."""
_TRANSPORTS = {1: "RDMA", 2: "FC", 3: "TCP", 254: "loop"}
_KINDS = {1: "referral", 2: "NVM", 3: "discovery"}
_TLS = 1
"""Transport requirements, secure channel: required (TREQ, bits 1:0)."""


@dataclass(frozen=True)
class Offer:
    """A subsystem, by one of its addresses."""

    nqn: str
    transport: str
    address: str
    port: str
    kind: str
    """NVM: a subsystem with namespaces; discovery, referral: another service to ask."""
    tls: bool
    """It demands TLS."""

    def to_json(self) -> dict[str, Any]:
        """Of `remote discover --json`."""
        return asdict(self)

    @classmethod
    def parse(cls, entry: bytes) -> Self:
        """From an entry of the log page."""
        transport, _, kind, requirements = struct.unpack_from("<BBBB", entry)
        return cls(
            nqn=_text(entry[256:512]),
            transport=_TRANSPORTS.get(transport, str(transport)),
            address=_text(entry[512:768]),
            port=_text(entry[32:64]),
            kind=_KINDS.get(kind, str(kind)),
            tls=requirements & 3 == _TLS,
        )


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace").strip()


async def discover(address: str, port: int, host: HostIdentity) -> list[Offer]:
    """Ask a discovery service.

    :raises RpcConnectionError: nothing listens there. :raises TargetError: it is none, or refuses.
    """
    where = f"{address} port {port}"
    try:
        async with asyncio.timeout(_DEADLINE_S):
            reader, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError) as error:
        why = "no answer"
        if isinstance(error, OSError) and error.errno:
            # Errors of the resolver have numbers and texts of their own.
            why = str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno)
        raise RpcConnectionError(f"{where}: {why}") from None
    try:
        async with asyncio.timeout(_DEADLINE_S):
            answer = await fabrics.connect(reader, writer, NQN, host.nqn, host.id)
            if answer.stage != "admitted":
                raise TargetError(f"{where}: {answer.text}")
            return await _Service(reader, writer, where).offers()
    except (EOFError, ConnectionError):
        raise TargetError(f"{where}: it ended the connection: it may serve no discovery, or want TLS") from None
    except TimeoutError:
        raise TargetError(f"{where}: it accepts connections, and does not answer as a discovery service") from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class _Service:
    """An admin queue that is connected."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> None:
        self._reader = reader
        self._writer = writer
        self._where = where
        self._next_id = 1

    async def offers(self) -> list[Offer]:
        """Everything in the log, in its order.

        :raises TargetError: it refuses a command.
        """
        # Property Set and Get (fabrics commands 00h and 04h) of 4 bytes.
        await self._command(struct.pack("<BBHB35xIIQ8x", 0x7F, 0x40, self._id(), 0x00, 0, _CC, _ENABLE))
        ready = 0
        while not ready & 1:
            ready, _ = await self._command(struct.pack("<BBHB35xII16x", 0x7F, 0x40, self._id(), 0x04, 0, _CSTS))
        head = await self._log(0, _HEADER)
        (count,) = struct.unpack_from("<Q", head, 8)
        entries = [await self._log(_HEADER + place * _ENTRY, _ENTRY) for place in range(min(count, _MOST))]
        return [Offer.parse(entry) for entry in entries]

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _log(self, offset: int, size: int) -> bytes:
        dwords = size // 4 - 1
        # A transport SGL data block (5Ah): the data comes in PDUs of its own.
        command = struct.pack("<BBHI16xQI3xB", _GET_LOG_PAGE, 0x40, self._id(), 0, 0, size, 0x5A)
        command += struct.pack("<HHIQ8x", _LOG, dwords, 0, offset)
        _, data = await self._command(command)
        if len(data) != size:
            raise TargetError(f"{self._where}: its discovery log ends early")
        return data

    async def _command(self, command: bytes) -> tuple[int, bytes]:
        """Its result and its data.

        :raises TargetError: the service refuses it.
        """
        self._writer.write(struct.pack("<BBBBI", fabrics.COMMAND, 0, 72, 0, 72) + command)
        data = bytearray()
        while True:
            kind, flags, body = await fabrics.pdu(self._reader)
            if kind == fabrics.C2H_DATA:
                _, _, length = struct.unpack_from("<HxxII", body)
                data += body[len(body) - length :]
                if flags & fabrics.SUCCESS:
                    return 0, bytes(data)
            elif kind == fabrics.RESPONSE:
                result, status = struct.unpack("<I10xH", body[:16])
                if status >> 1 & 0x7FF:
                    raise TargetError(f"{self._where}: it refused a command with NVMe status {status >> 1 & 0x7FF:#x}")
                return result, bytes(data)
            else:
                raise TargetError(f"{self._where}: it does not answer as a discovery service")
