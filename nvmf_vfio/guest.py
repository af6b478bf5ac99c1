"""A guest's side of a session: its socket, its requests one by one, and their replies.

Owns the guest's socket, the journal of its requests, and the statistics. A message is recorded before it is taken off
the socket, and its request is struck out before the reply is sent: see `restore` and `nvmf_vfio.keeper.journal`. What a
request does is `nvmf_vfio.session`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from nvmf_vfio.keeper.fd_store import FdStore, StoredFd
from nvmf_vfio.keeper.journal import Journal
from nvmf_vfio.pending import Pending, Stalls, Statistics, decode, release
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Flag, Header, ProtocolError
from nvmf_vfio.protocol.wire import Closed, Message, Wire

log = logging.getLogger(__name__)

_BATCH = 64
_TURN = 0.002
"""Messages, and about the seconds, that one guest gets before the others have their turn."""
_MAX_REFUSALS_LOGGED = 16


class GuestLink:
    """One guest's connection.

    :param store: already holds the connection and the record (`conn`, `record`).
    :param is_versioned: whether the guest has sent VERSION before.
    :param on_request: called with each request once it is recorded and off the socket.
    :param on_reply: called with each reply; it has no descriptors.
    :param on_late: called with a request that a target should have answered by now.
    :param on_end: called when the connection has ended or cannot go on; it is to call `close`.
    """

    def __init__(
        self,
        name: str,
        wire: Wire,
        record: Descriptor,
        store: FdStore,
        *,
        is_versioned: Callable[[], bool],
        on_request: Callable[[Pending], None],
        on_reply: Callable[[Message], None],
        on_late: Callable[[Pending], None],
        on_end: Callable[[], None],
    ) -> None:
        self.statistics = Statistics()
        self._stalls = Stalls()
        self.journal = Journal(record, store, on_failure=self.fail, on_late=on_late)
        self._name = name
        self._wire = wire
        self._store = store
        self._is_versioned = is_versioned
        self._on_request = on_request
        self._on_reply = on_reply
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._refusals = 0
        self._open = True

    def start(self) -> None:
        """Begin to read the guest's messages."""
        self._wire.attach(self._readable, self.fail)

    def restore(self, stored: dict[str, StoredFd]) -> None:
        """Take over the requests of an endpoint that was killed, and begin to read.

        A request that was recorded but is still on the socket was not taken yet. A request that was taken has not been
        answered. If the reply was recorded but not sent, QEMU waits for its time-out (5 s) and goes on.

        :raises Closed: the guest has disconnected.
        :raises ProtocolError: the record is of no use, or a message had been taken off the socket in part.
        """
        unread = self._wire.peek()
        self.journal.restore(unread, stored)
        if unread:
            unread.close()
        self.start()

    def keep_only(self, names: set[str]) -> None:
        """Release stored descriptors that are neither remembered under one of `names` nor the connection's own."""
        self._store.remove_others(names)

    def close(self) -> None:
        """End the connection, and release every descriptor that is stored for it. Idempotent."""
        if not self._open:
            return
        self._open = False
        self.journal.close()
        with contextlib.suppress(OSError):
            # The supervisor's copy of the descriptor keeps the connection open a little longer than `close` here.
            self._wire.socket.shutdown(socket.SHUT_RDWR)
        self._wire.close()
        self._store.close()

    def fail(self, reason: str) -> None:
        """Log why the connection cannot go on, and have it closed."""
        if self._open:
            log.warning("%s: connection closed: %s", self._name, reason)
            self._on_end()

    # -- from the guest ------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            self._read_batch()
        except Closed:
            log.info("%s: guest disconnected", self._name)
            self._on_end()
        except ProtocolError as error:
            self.fail(str(error))
        except OSError as error:
            # No descriptors left, or no memory: this guest's own connection ends, and gives back what it has.
            self.fail(f"cannot serve it: {error}")
        except BaseException:
            # A message that cannot be handled is still there: it must not be tried for ever.
            self._on_end()
            raise

    def _read_batch(self) -> None:
        until = time.monotonic() + _TURN
        for _ in range(_BATCH):
            if time.monotonic() > until or self.journal.is_full:
                break
            message = self._wire.peek() if self._open else None
            if message is None:
                break
            self._take(message)
        if self._open:
            self.journal.note_partial(partial=self._wire.is_partial)
            self._wire.hold(self.journal.is_full)

    def _take(self, message: Message) -> None:
        """Handle one message that is still on the socket, or was taken off it piecemeal."""
        self.statistics.messages += 1
        header = message.header
        if header.is_reply:
            self._wire.consume()
            message.close()
            self._on_reply(message)
            return
        try:
            self.journal.admit(header)
        except ProtocolError:
            message.close()
            raise
        try:
            command, request = decode(header, message.body, versioned=self._is_versioned())
        except ProtocolError as error:
            message.close()
            self._wire.consume()
            self.journal.note_partial(partial=False)
            self.refuse(header, errno.EINVAL, error)
            return
        pending = Pending(header, message.body, command, request, self._push(message), self._loop.time())
        if header.wants_reply:
            self.journal.add(pending)
        if not self._wire.consume():
            release(pending.stored)
        self._on_request(pending)

    def _push(self, message: Message) -> list[StoredFd]:
        """Store a message's descriptors, so that they outlive this process."""
        stored: list[StoredFd] = []
        try:
            while message.descriptors:
                stored.append(self._store.push(message.descriptors.pop(0)))
        except OSError:
            message.close()
            raise
        return stored

    # -- to the guest --------------------------------------------------------------------------------------------

    def finish(self, pending: Pending) -> None:
        """Strike a request out that is about to be answered, which makes room for another."""
        self.journal.finish(pending)
        if self._open:
            self._wire.hold(self.journal.is_full)

    def refuse(self, header: Header, number: int, reason: Exception) -> None:
        """Answer a request with an errno, and log the reason of the first few."""
        self._refusals += 1
        if self._refusals <= _MAX_REFUSALS_LOGGED:
            log.warning("%s: refused: %s", self._name, reason)
        self.reply(header, error=number)

    def reply(
        self, header: Header, body: bytes = b"", descriptors: list[Descriptor] | None = None, *, error: int = 0
    ) -> None:
        """Answer a request, if its header asks for a reply. Takes the descriptors over.

        :param error: an errno; 0 is success.
        """
        if header.wants_reply:
            flags = Flag.REPLY | (Flag.ERROR if error else 0)
            self.send(Header(header.id, header.command, 0, flags, error), body, descriptors or [])

    def send(self, header: Header, body: bytes, descriptors: list[Descriptor]) -> None:
        """Send a message to the guest. Takes the descriptors over."""
        self.statistics.messages += 1
        self._wire.deliver(header, body, descriptors)

    def back(self) -> None:
        """Record that its driver works again."""
        stall = self.statistics.back()
        if stall is not None:
            self._stalls.add(stall)

    def status(self) -> dict[str, Any]:
        """The guest's process and its statistics, for `nvmuser status`."""
        shown = {name: value for name, value in vars(self.statistics).items() if name != "lost_at"}
        return {"pid": self._wire.peer_pid, **shown, "stalls": self._stalls.to_json()}
