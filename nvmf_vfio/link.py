"""A connection to a target: requests out, replies matched to them.

Owns the socket to SPDK and the table of requests that await a reply. It does not know what a request does, nor what to
do when the target is gone: it reports that once, to its user.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmf_vfio.protocol.header import MAX_TARGET_MESSAGE, Command, Flag, Header, ProtocolError
from nvmf_vfio.protocol.wire import Closed, Message, Wire

_CONNECT_INTERVAL = 0.01
_CONNECT_LONGEST = 0.2
_MAX_ID = 0xFFFF
_MAX_AWAITED = 16384
"""Requests without a reply after which a target counts as lost: more than a replay has, which is sent at once
(`nvmf_vfio.state.memory.MAX_MAPS`, `interrupts`)."""


class TargetError(Exception):
    """The target answered with an error, or not at all."""


async def connect(path: Path) -> socket.socket:
    """Connect to a target's socket, and try again until it works: a new target is not listening yet, a busy one has its
    backlog of one connection taken.

    :raises OSError: the path can never be a target's socket.
    """
    interval = _CONNECT_INTERVAL
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(path))
            return sock
        except (BlockingIOError, FileNotFoundError, ConnectionError):
            sock.close()
        except BaseException:
            sock.close()
            raise
        await asyncio.sleep(interval)
        interval = min(interval * 1.5, _CONNECT_LONGEST)


class TargetLink:
    """One connection to one target.

    :param on_request: called with each request that the target makes (DMA by message).
    :param on_lost: called once when the connection ends for any reason but `close`.
    """

    def __init__(self, sock: socket.socket, on_request: Callable[[Message], None], on_lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire = Wire(sock, limit=MAX_TARGET_MESSAGE, queue=_MAX_AWAITED)
        self._on_request = on_request
        self._on_lost = on_lost
        self._awaited: dict[int, Callable[[Message], None]] = {}
        self._calls: set[asyncio.Future[bytes]] = set()
        self._next_id = 0
        self._open = True
        self.messages = 0
        self._wire.attach(self._readable, lambda _reason: self._lost())

    def request(
        self, command: Command, body: bytes, descriptors: list[Descriptor], on_reply: Callable[[Message], None]
    ) -> None:
        """Send a request. `on_reply` gets the reply and its descriptors, unless the connection ends before."""
        if len(self._awaited) >= _MAX_AWAITED:
            close_all(descriptors)
            self._loop.call_soon(self._lost)
            return
        identifier = self._next_id
        while identifier in self._awaited:
            identifier = (identifier + 1) & _MAX_ID
        self._next_id = (identifier + 1) & _MAX_ID
        self._awaited[identifier] = on_reply
        self._send(Header(identifier, command, 0), body, descriptors)

    def post(self, command: Command, body: bytes) -> None:
        """Send a request that gets no reply and has no descriptors."""
        self._send(Header(0, command, 0, Flag.NO_REPLY), body, [])

    def call(self, command: Command, body: bytes, descriptors: list[Descriptor] | None = None) -> asyncio.Future[bytes]:
        """Send a request of our own; awaiting the future gives its reply's payload.

        The future's exception is a TargetError: an error reply, or the connection ended.
        """
        if not self._open:
            close_all(descriptors or [])
            raise TargetError(os.strerror(errno.ECONNRESET))
        future: asyncio.Future[bytes] = self._loop.create_future()

        def replied(message: Message) -> None:
            message.close()
            if future.done():
                return
            if message.header.flags & Flag.ERROR:
                reason = os.strerror(message.header.error)
                future.set_exception(TargetError(f"{command.name}: {reason}"))
            else:
                future.set_result(message.body)

        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        self.request(command, body, descriptors or [], replied)
        return future

    def reply(self, message: Message) -> None:
        """Answer a request that the target made. Takes the descriptors over."""
        descriptors, message.descriptors = message.descriptors, []
        self._send(message.header, message.body, descriptors)

    def _send(self, header: Header, body: bytes, descriptors: list[Descriptor]) -> None:
        self.messages += 1
        self._wire.deliver(header, body, descriptors)

    def _readable(self) -> None:
        try:
            while self._open and (message := self._wire.receive()):
                self.messages += 1
                if not message.header.is_reply:
                    self._on_request(message)
                elif callback := self._awaited.pop(message.header.id, None):
                    callback(message)
                else:
                    message.close()
        except (Closed, ProtocolError, OSError):
            self._lost()

    def _lost(self) -> None:
        if self._open:
            self.close()
            self._on_lost()

    def close(self) -> None:
        """End the connection; awaiting a `call` raises TargetError then. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._wire.close()
        self._awaited.clear()
        for future in list(self._calls):
            if not future.done():
                future.set_exception(TargetError(os.strerror(errno.ECONNRESET)))
