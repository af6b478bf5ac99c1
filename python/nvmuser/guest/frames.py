"""Frames on the agent's serial line: the host's half of the codec that appliance/agent/agent.c describes.

Owns bytes only: COBS, CRC-32, sequence numbers. What the frames mean belongs to `nvmuser.guest.agent`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MAX_PAYLOAD = 16384
_HEADER = struct.Struct("<cHI")
_CRC = struct.Struct("<I")
_LONGEST = _HEADER.size + MAX_PAYLOAD + _CRC.size
_LONGEST_ENCODED = _LONGEST + _LONGEST // 254 + 2


@dataclass(frozen=True)
class Frame:
    """One frame. `kind` is a single byte; `command` is 0 where it belongs to no command."""

    kind: bytes
    sequence: int
    command: int
    payload: bytes


def cobs_encode(data: bytes) -> bytes:
    """`data` without a zero byte, one byte in 254 longer."""
    out = bytearray()
    blocks = data.split(b"\0")
    for block in blocks:
        while len(block) >= 254:
            out += b"\xff" + block[:254]
            block = block[254:]
        out.append(len(block) + 1)
        out += block
    return bytes(out)


def cobs_decode(data: bytes) -> bytes | None:
    """The inverse; None for what `cobs_encode` cannot have made."""
    out = bytearray()
    at = 0
    while at < len(data):
        code = data[at]
        if code == 0 or at + code > len(data):
            return None
        out += data[at + 1 : at + code]
        at += code
        if code != 0xFF and at < len(data):
            out.append(0)
    return bytes(out)


def encode(frame: Frame) -> bytes:
    """The frame as it goes onto the line. The leading zero ends whatever stands there half-sent."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame's payload may have {MAX_PAYLOAD} bytes, not {len(frame.payload)}")
    data = _HEADER.pack(frame.kind, frame.sequence, frame.command) + frame.payload
    return b"\0" + cobs_encode(data + _CRC.pack(zlib.crc32(data))) + b"\0"


def decode(encoded: bytes) -> Frame | None:
    """The frame between two zero bytes, or None when it is none."""
    data = cobs_decode(encoded)
    if data is None or len(data) < _HEADER.size + _CRC.size:
        return None
    body, (checksum,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
    if zlib.crc32(body) != checksum:
        return None
    kind, sequence, command = _HEADER.unpack_from(body)
    return Frame(kind, sequence, command, body[_HEADER.size :])


class Decoder:
    """Decoder that finds the frames in a stream that arrives in any pieces, and drops all else."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes."""
        *complete, rest = data.split(b"\0")
        for piece in complete:
            self._append(piece)
            if self._buffer and (frame := decode(bytes(self._buffer))) is not None:
                yield frame
            self._buffer.clear()
        self._append(rest)

    def _append(self, piece: bytes) -> None:
        # One byte more than a frame can have is kept: enough to know that it is none.
        self._buffer += piece[: _LONGEST_ENCODED + 1 - len(self._buffer)]
