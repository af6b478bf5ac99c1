"""What a remote answers to an NVMe/TCP connection: asked once, to learn why SPDK could not attach it.

Owns that one connection, and the words for its end. SPDK's own client reports each of these as 'Input/output error'.
Sources: NVMe TCP Transport Specification 1.0 (PDUs), NVM Express Base Specification 2.0, 6.3 (Connect).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import uuid
from dataclasses import dataclass
from typing import Literal

_DEADLINE_S = 5.0
COMMAND, RESPONSE, C2H_DATA = 0x04, 0x05, 0x07
"""Kinds of PDUs."""
SUCCESS = 1 << 3
"""Flag of C2H_DATA: no RESPONSE follows."""
_ICREQ, _ICRESP = 0x00, 0x01
_CONNECT_DATA = 1024
_AUTHENTICATION = 0x3 << 17
"""Bits of a Connect's result: authentication is required, with or without TLS (Base 2.0, 6.3, ATR and ASCR)."""
_INVALID_HOST, _INVALID_PARAMETERS = 0x184, 0x182
"""Status code type and status code."""
_HOST_NQN_OFFSET = 512
"""Of the host's name in Connect's data; the subsystem's is at 256."""


@dataclass(frozen=True)
class Answer:
    """How far a connection came, and in words why not further.

    unreachable: no connection. silent: a connection, but not of NVMe/TCP. refused: by an NVMe status. authentication:
    a connection that is good for authentication alone. admitted: nothing is against it.
    """

    stage: Literal["unreachable", "silent", "refused", "authentication", "admitted"]
    text: str = ""


async def ask(address: str, port: int, nqn: str, host_nqn: str, host_id: str) -> Answer:
    """Connect to an admin queue. Nothing stays: the connection ends before a controller is enabled."""
    try:
        async with asyncio.timeout(_DEADLINE_S):
            reader, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return Answer("unreachable", "the connection was refused: nothing listens there")
    except TimeoutError:
        return Answer("unreachable", f"no answer within {_DEADLINE_S:g} s: the host is down, or a firewall is between")
    except OSError as error:
        return Answer("unreachable", error.strerror or str(error))
    try:
        async with asyncio.timeout(_DEADLINE_S):
            return await connect(reader, writer, nqn, host_nqn, host_id)
    except (EOFError, ConnectionError):
        return Answer("silent", "it ends connections without a word of NVMe/TCP: it may want TLS (--psk)")
    except TimeoutError:
        return Answer("silent", f"it accepts connections, and sends no NVMe/TCP within {_DEADLINE_S:g} s")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def connect(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nqn: str, host_nqn: str, host_id: str
) -> Answer:
    """Make a TCP connection the admin queue of a controller, which is not enabled yet.

    :raises EOFError: the other side ended it.
    """
    # PFV 0, HPDA 0, no digests, MAXR2T 0.
    writer.write(struct.pack("<BBBBIHBBI", _ICREQ, 0, 128, 0, 128, 0, 0, 0, 0) + bytes(112))
    kind, _, _ = await pdu(reader)
    if kind != _ICRESP:
        return Answer("silent", "it answers, but not as NVMe/TCP does")
    data = uuid.UUID(host_id).bytes + struct.pack("<H", 0xFFFF) + bytes(238)
    data += _name(nqn) + _name(host_nqn) + bytes(256)
    # Fabrics command (7Fh), SGL in the capsule (offset 01h), Connect (01h), RECFMT 0, QID 0, SQSIZE 31, no keep alive.
    command = struct.pack("<BBHB19xQI3xB", 0x7F, 0x40, 0, 0x01, 0, _CONNECT_DATA, 0x01)
    command += struct.pack("<HHHBBI12x", 0, 0, 31, 0, 0, 0)
    header = struct.pack("<BBBBI", COMMAND, 0, 72, 72, 72 + _CONNECT_DATA)
    writer.write(header + command + data)
    kind, _, body = await pdu(reader)
    if kind != RESPONSE:
        return Answer("silent", "it does not take this NVMe/TCP")
    result, status = struct.unpack("<I10xH", body[:16])
    return _meaning(status >> 1 & 0x7FF, result, nqn, host_nqn)


def _name(text: str) -> bytes:
    return text.encode()[:255].ljust(256, b"\0")


async def pdu(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """Kind, flags and what follows the common header.

    :raises EOFError: the other side ended the connection.
    """
    kind, flags, _header, _data, length = struct.unpack("<BBBBI", await reader.readexactly(8))
    return kind, flags, await reader.readexactly(max(0, min(length, 1 << 16) - 8))


def _meaning(status: int, result: int, nqn: str, host_nqn: str) -> Answer:
    """Status code type and code of Connect, and its result, in words."""
    if status == 0 and result & _AUTHENTICATION:
        return Answer("authentication", "it demands authentication (DH-HMAC-CHAP): --dhchap-key")
    if status == 0:
        return Answer("admitted")
    text = f"it refused the connection with NVMe status {status >> 8:#x}/{status & 0xFF:#04x}"
    if status == _INVALID_HOST:
        text = f"it does not admit this host: have it admit {host_nqn} (`nvmuser remote host-id`)"
    elif status == _INVALID_PARAMETERS and result & 0xFFFF != _HOST_NQN_OFFSET:
        text = f"it has no subsystem {nqn}, or does not offer it at this address"
    return Answer("refused", text)
