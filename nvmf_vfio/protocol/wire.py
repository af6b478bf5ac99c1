"""Moves whole messages over a non-blocking UNIX stream socket.

Owns one connected socket, the message that is half read from it and the messages that wait to be written to it. It
knows headers, not commands.

A message can be *peeked* before it is taken off the socket. The endpoint records a guest's message in between: if it
is killed then, its successor finds the message still on the socket.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmf_vfio.protocol.header import MAX_DESCRIPTORS, Header, ProtocolError

_CONTROL_SIZE = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
_MAX_QUEUED = 512
_MAX_QUEUED_BYTES = 4 << 20
"""Messages and bytes that may wait for a peer that does not read, unless a caller sets another limit."""


class Closed(Exception):
    """The peer has ended the connection."""


@dataclass(slots=True)
class Message:
    """One message as it travels. Its holder owns its descriptors."""

    header: Header
    body: bytes
    descriptors: list[Descriptor] = field(default_factory=list)

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        close_all(self.descriptors)


class Wire:
    """One connection. `receive` and `send` never block. Once it is attached to an event loop, the loop reads and
    writes, and `deliver` takes the place of `send`.

    :param limit: the largest message to accept, in bytes.
    :param queue: how many messages may wait for a peer that does not read.
    """

    def __init__(self, sock: socket.socket, *, limit: int, queue: int = _MAX_QUEUED) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._limit = limit
        self._partial = bytearray()
        self._descriptors: list[Descriptor] = []
        self._peeked = 0
        self._queue: deque[tuple[memoryview, list[Descriptor]]] = deque()
        self._queued_bytes = 0
        self._open = True
        self._max_queued = queue
        self._held = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readable: Callable[[], None] | None = None
        self._broken: Callable[[str], None] | None = None

    def attach(self, readable: Callable[[], None], broken: Callable[[str], None]) -> None:
        """Have the running event loop call `readable` when data has arrived, and write what waits.

        :param broken: called from the loop, with the reason, when something cannot be sent; perhaps more than once.
        """
        self._loop, self._readable, self._broken = asyncio.get_running_loop(), readable, broken
        self._loop.add_reader(self.socket, readable)

    def hold(self, held: bool) -> None:
        """Stop reading, so that the peer waits for room on the socket, or resume. Idempotent."""
        if held is self._held or self._loop is None or self._readable is None:
            return
        self._held = held
        if held:
            self._loop.remove_reader(self.socket)
        else:
            self._loop.add_reader(self.socket, self._readable)

    @property
    def peer_pid(self) -> int:
        """The process that connected; 0 when it has ended, or lives in another namespace."""
        credentials = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid if os.path.exists(f"/proc/{pid}") else 0

    @property
    def is_partial(self) -> bool:
        """Whether a message has been taken off the socket in part."""
        return bool(self._partial)

    @property
    def is_blocked(self) -> bool:
        """Whether messages wait until the socket is writable: call `flush` then."""
        return bool(self._queue)

    def peek(self) -> Message | None:
        """The next message, still on the socket until `consume`; None when it has not arrived in whole.

        A message that arrives piecemeal is taken off as it comes.

        :raises Closed: at the end of the stream.
        :raises ProtocolError: a header that is not allowed, or too many descriptors; the stream cannot go on.
        """
        if self._partial:
            return self.receive()
        head, _ = self._recv(Header.SIZE, socket.MSG_PEEK, descriptors=False)
        if head is None:
            return None
        if len(head) == Header.SIZE:
            header = Header.unpack(head, limit=self._limit)
            data, descriptors = self._recv(header.size, socket.MSG_PEEK)
            if data is not None and len(data) == header.size:
                self._peeked = header.size
                return Message(header, data[Header.SIZE :], descriptors)
            close_all(descriptors)
        return self.receive()

    def consume(self) -> bool:
        """Take the message that `peek` returned off the socket.

        :returns: whether the descriptors that `peek` returned are this message's. When a message has none, Linux's
            `unix_stream_read_generic` looks at the next one while it peeks, and returns that one's.
        """
        size, self._peeked = self._peeked, 0
        if not size:
            return True
        descriptors: list[Descriptor] = []
        while size:
            data, more = self._recv(size, 0)
            assert data is not None
            descriptors += more
            size -= len(data)
        found = bool(descriptors)
        close_all(descriptors)
        return found

    def receive(self) -> Message | None:
        """The next message, taken off the socket; None when it has not arrived in whole.

        :raises Closed: at the end of the stream.
        :raises ProtocolError: as `peek` does.
        """
        while True:
            header = None
            needed = Header.SIZE
            if len(self._partial) >= Header.SIZE:
                header = Header.unpack(bytes(self._partial[: Header.SIZE]), limit=self._limit)
                needed = header.size
            missing = needed - len(self._partial)
            if header is not None and missing == 0:
                body = bytes(self._partial[Header.SIZE :])
                descriptors, self._descriptors = self._descriptors, []
                self._partial.clear()
                return Message(header, body, descriptors)
            data, descriptors = self._recv(missing, 0)
            self._descriptors += descriptors
            if len(self._descriptors) > MAX_DESCRIPTORS:
                raise ProtocolError(f"more than {MAX_DESCRIPTORS} descriptors in a message")
            if data is None:
                return None
            self._partial += data

    def _recv(self, size: int, flags: int, *, descriptors: bool = True) -> tuple[bytes | None, list[Descriptor]]:
        """At most `size` bytes and the descriptors beside them; None when nothing has arrived."""
        try:
            data, control, result, _ = self.socket.recvmsg(
                size, _CONTROL_SIZE if descriptors else 0, flags | socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return None, []
        except OSError as error:
            # A peer that dies with unread data in its socket resets the connection: its end all the same. And no
            # memory, or no room for descriptors, must end one connection only.
            raise Closed from error
        received: list[Descriptor] = []
        for level, kind, content in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                received += [Descriptor(number) for number in numbers]
        if descriptors and result & socket.MSG_CTRUNC:
            close_all(received)
            raise ProtocolError(f"more than {MAX_DESCRIPTORS} descriptors in a message")
        if not data:
            close_all(received)
            raise Closed
        return data, received

    def send(self, header: Header, body: bytes = b"", descriptors: Sequence[Descriptor] = ()) -> None:
        """Send a message, or queue it when the socket is full. Takes the descriptors over.

        :param header: its `size` is filled in.
        :raises Closed: the peer is gone.
        :raises ProtocolError: the peer sends requests but does not read replies.
        """
        packed = Header(header.id, header.command, Header.SIZE + len(body), header.flags, header.error).pack()
        if not self._open:
            close_all(list(descriptors))
            raise Closed
        if len(self._queue) >= self._max_queued or self._queued_bytes >= _MAX_QUEUED_BYTES:
            close_all(list(descriptors))
            raise ProtocolError(f"{len(self._queue)} messages unread")
        self._queue.append((memoryview(packed + body), list(descriptors)))
        self._queued_bytes += len(packed) + len(body)
        if len(self._queue) == 1:
            self.flush()

    def deliver(self, header: Header, body: bytes, descriptors: Sequence[Descriptor]) -> None:
        """Send on an attached wire. Failures are reported to `broken` from the loop: the caller may be in a change."""
        assert self._loop is not None
        assert self._broken is not None
        try:
            self.send(header, body, descriptors)
        except (Closed, ProtocolError) as error:
            self._loop.call_soon(self._broken, f"cannot send: {error or 'the peer is gone'}")
            return
        if self._queue:
            self._loop.add_writer(self.socket, self._writable)

    def _writable(self) -> None:
        assert self._loop is not None
        assert self._broken is not None
        try:
            self.flush()
        except Closed:
            self._broken("cannot send: the peer is gone")
            return
        if not self._queue:
            self._loop.remove_writer(self.socket)

    def flush(self) -> None:
        """Write as much of what waits as the socket takes.

        :raises Closed: the peer is gone.
        """
        while self._queue:
            data, descriptors = self._queue[0]
            control = []
            if descriptors:
                numbers = array.array("i", [descriptor.fileno() for descriptor in descriptors])
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
            try:
                sent = self.socket.sendmsg([data], control, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise Closed from error
            close_all(descriptors)
            self._queued_bytes -= sent
            if sent == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (data[sent:], [])

    def close(self) -> None:
        """Close the socket and every descriptor in transit. Idempotent."""
        if self._loop and self._open:
            self._loop.remove_reader(self.socket)
            self._loop.remove_writer(self.socket)
        self._open = False
        for _, descriptors in self._queue:
            close_all(descriptors)
        self._queue.clear()
        close_all(self._descriptors)
        self.socket.close()
