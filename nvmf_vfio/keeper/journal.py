"""The record of a session, for its successor if this process is killed.

Owns the table of requests that have no reply yet, their deadlines, and the two documents in the session's record: the
controller as its guest knows it, and that table. A request is recorded before it is taken off the socket, and struck
out before its reply is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nvmf_vfio.keeper.fd_store import FdStore, Record, RecordFull, StoredFd
from nvmf_vfio.pending import Pending, release
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import MAX_MESSAGE, Header, ProtocolError
from nvmf_vfio.protocol.messages import decode_request
from nvmf_vfio.protocol.wire import Message

_PENDING_SLOT = 2
_PARTIAL = "partial"
_REPLY_DEADLINE = 4.0
"""Seconds that a reply may take. QEMU gives up at 5 s, and a reply after that breaks its stream."""
_MAX_PENDING = 64
_MAX_PENDING_BYTES = 256 << 10
"""Requests without a reply, and what is in them: others wait on their socket. QEMU has a few tens, of less than 100
bytes, but sends all maps of a transaction without waiting. All are in the record, which is written at each."""


class Journal:
    """The record of one session.

    :param store: committed after each write, when no record names what was removed.
    :param on_failure: called from the event loop, with the reason, when something cannot be recorded.
    :param on_late: called with a request that was expected to be answered by now.
    """

    def __init__(
        self,
        record: Descriptor,
        store: FdStore,
        *,
        on_failure: Callable[[str], None],
        on_late: Callable[[Pending], None],
    ) -> None:
        self._state = Record(record)
        self._requests = Record(record, _PENDING_SLOT)
        self._store = store
        self._on_failure = on_failure
        self._on_late = on_late
        self._check: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, Pending] = {}
        self._bytes = 0
        self._partial_recorded = False
        self._open = True

    @property
    def state(self) -> Any:
        """The controller's document that an earlier process left; None when there is none."""
        return self._state.document

    def restore(self, unread: Message | None, stored: dict[str, StoredFd]) -> None:
        """Take over the requests that an earlier process had taken and not answered.

        :param unread: the message that is still on the socket: recorded perhaps, but not taken.
        :raises ProtocolError: the record is of no use, or that process was killed while it read a message piecemeal.
        """
        requests = self._requests.document or []
        if requests == _PARTIAL:
            raise ProtocolError("killed in the middle of a message that came in pieces")
        for packed, body_text, names, remembered in requests:
            header = Header.unpack(bytes.fromhex(packed), limit=MAX_MESSAGE)
            body = bytes.fromhex(body_text)
            descriptors = [stored[name].share() for name in names if name in stored]
            if unread and (unread.header.pack(), unread.body) == (header.pack(), body):
                release(descriptors)
                continue
            command, request = decode_request(header.command, body)
            self.add(Pending(header, body, command, request, descriptors, self._loop.time(), remembered=remembered))

    # -- requests without a reply --------------------------------------------------------------------------------

    def __contains__(self, pending: Pending) -> bool:
        return self._pending.get(pending.header.id) is pending

    @property
    def pending(self) -> list[Pending]:
        """Requests without a reply, in the order in which they came."""
        return list(self._pending.values())

    def admit(self, header: Header) -> None:
        """Check whether another request can be taken.

        :raises ProtocolError: its message id is in use.
        """
        if header.wants_reply and header.id in self._pending:
            raise ProtocolError(f"message id {header.id} is in use")

    @property
    def is_full(self) -> bool:
        """Whether no request may be taken before one has been answered."""
        return len(self._pending) >= _MAX_PENDING or self._bytes > _MAX_PENDING_BYTES

    def add(self, pending: Pending) -> None:
        """Record a request that is going to be taken."""
        self._pending[pending.header.id] = pending
        self._bytes += pending.size
        self._write_requests()

    def expect(self, pending: Pending) -> None:
        """Expect a reply to this request within the deadline; `on_late` is called otherwise."""
        pending.sent = True
        pending.since = self._loop.time()
        if self._check is None:
            self._check = self._loop.call_later(_REPLY_DEADLINE, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._check = None
        now = self._loop.time()
        for pending in self.pending:
            if pending.sent and now - pending.since >= _REPLY_DEADLINE:
                self._on_late(pending)
        sent = [pending.since for pending in self.pending if pending.sent]
        if sent and self._open:
            self._check = self._loop.call_at(min(sent) + _REPLY_DEADLINE, self._check_deadlines)

    def finish(self, pending: Pending) -> None:
        """Strike out a request that is about to be answered. Idempotent."""
        if self._pending.pop(pending.header.id, None):
            self._bytes -= pending.size
            self._write_requests()

    def note_partial(self, *, partial: bool) -> None:
        """Record whether part of a message has been taken off the socket: no successor could go on with it."""
        if partial:
            self._partial_recorded = True
            self._write(self._requests, _PARTIAL)
        elif self._partial_recorded:
            self._write_requests()

    # -- writing -------------------------------------------------------------------------------------------------

    def save(self, document: dict[str, Any]) -> None:
        """Record the controller."""
        self._write(self._state, document)

    def _write_requests(self) -> None:
        self._partial_recorded = False
        # The descriptors of what is remembered are the controller's, and may have been released since.
        document = [
            [p.header.pack().hex(), p.body.hex(), [] if p.remembered else [k.name for k in p.stored], p.remembered]
            for p in self._pending.values()
        ]
        self._write(self._requests, document)

    def _write(self, record: Record, document: Any) -> None:
        if not self._open:
            return
        try:
            record.write(document)
        except (RecordFull, OSError) as error:
            # Reported from the event loop: the caller may be in the middle of a change, or of a loop over all guests.
            self._loop.call_soon(self._on_failure, f"cannot record: {error}")
        else:
            self._store.commit()

    def close(self) -> None:
        """Write nothing any more: the record's memory belongs to its successor."""
        self._open = False
        if self._check:
            self._check.cancel()
