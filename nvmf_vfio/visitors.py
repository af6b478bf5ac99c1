"""Connections on which no message has arrived yet: whether one has left again, and how one too many is answered.

Owns no connection: they are `nvmf_vfio.endpoint`'s.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from nvmf_vfio.protocol.header import MAX_MESSAGE, Flag, Header, ProtocolError


def has_left(sock: socket.socket) -> bool:
    """Whether a peer has closed its end without a message."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def answer_busy(sock: socket.socket) -> None:
    """Answer a guest's first message with an error.

    QEMU prints 'Device or resource busy' then. When a server hangs up instead, QEMU 11.1 prints 'Broken pipe', and
    sometimes exits, with a guest into which the device was being plugged.
    """
    with contextlib.suppress(OSError, ProtocolError):
        header = Header.unpack(sock.recv(MAX_MESSAGE)[: Header.SIZE], limit=MAX_MESSAGE)
        error = Header(header.id, header.command, Header.SIZE, Flag.REPLY | Flag.ERROR, errno.EBUSY)
        sock.send(error.pack(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
