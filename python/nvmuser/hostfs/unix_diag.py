"""Who listens at a UNIX socket, asked of the kernel (sock_diag(7), unix_diag): without a connection.

To SPDK every connection is a guest, which keeps the next one waiting, so that a look must not be one. Owns the question
and the form of the kernel's answers (linux/unix_diag.h). What it cannot see is another network namespace's.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x1 | 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_LISTENING = 1 << 10
"""A set of states; the kernel names that of TCP's, TCP_LISTEN (net/tcp_states.h)."""
_UDIAG_SHOW_VFS = 0x2
_UNIX_DIAG_VFS = 1
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ANSWER_SIZE = 16
_ATTRIBUTE = struct.Struct("=HH")
_VFS = struct.Struct("=II")
_ANY_COOKIE = 0xFFFFFFFF
_BUFFER = 1 << 16


Listeners = frozenset[bytes]
"""The files (`struct unix_diag_vfs`) at which somebody listened when the kernel was asked."""


def listeners() -> Listeners:
    """Everybody who listens now, as far as this network namespace knows: for looking at many sockets.

    The kernel lists all of them at each question. Empty where it does not answer such questions.
    """
    try:
        return frozenset(_listeners())
    except OSError:
        return frozenset()


def is_listening(path: Path, among: Listeners | None = None) -> bool:
    """Whether somebody listens at this very file, as far as this network namespace knows.

    False does not prove the contrary: the kernel may not answer such questions, or not for that namespace.

    :param among: who listens; None: ask now.
    """
    try:
        info = os.stat(path)
    except OSError:
        return False
    wanted = _VFS.pack(info.st_ino & 0xFFFFFFFF, os.major(info.st_dev) << 20 | os.minor(info.st_dev))
    return wanted in (listeners() if among is None else among)


def _listeners() -> Iterator[bytes]:
    """Ask the kernel.

    :raises OSError: the kernel does not list them.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        body = _REQUEST.pack(socket.AF_UNIX, 0, 0, _LISTENING, 0, _UDIAG_SHOW_VFS, _ANY_COOKIE, _ANY_COOKIE)
        size = _HEADER.size + len(body)
        netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body)
        while True:
            data = netlink.recv(_BUFFER)
            while data:
                size, kind, *_ = _HEADER.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", data, _HEADER.size)[0]
                    raise OSError(number, os.strerror(number))
                yield from _files(data[_HEADER.size + _ANSWER_SIZE : size])
                data = data[_aligned(size) :]


def _files(attributes: bytes) -> Iterator[bytes]:
    while attributes:
        size, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _UNIX_DIAG_VFS:
            yield attributes[_ATTRIBUTE.size : size]
        attributes = attributes[_aligned(size) :]


def _aligned(size: int) -> int:
    return size + 3 & ~3
