"""One guest's connection to one controller, across as many targets as it takes.

Owns the guest's socket and the order of events between guest and target. What is remembered and answered is
`nvmf_vfio.state.controller`'s business, the target's side `nvmf_vfio.uplink`'s.

A guest's message is recorded before it is taken off its socket, and its reply is recorded before it is sent: see
`resume` and `nvmf_vfio.keeper.journal`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvmf_vfio import replies
from nvmf_vfio.keeper.fd_store import FdStore, StoredFd
from nvmf_vfio.keeper.journal import Journal
from nvmf_vfio.pending import Pending, Statistics, changes_state, decode, is_admin_doorbell, release
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command, Flag, Header, ProtocolError
from nvmf_vfio.protocol.messages import DmaMap, DmaUnmap
from nvmf_vfio.protocol.wire import Closed, Message, Wire
from nvmf_vfio.state.controller import Controller, Phase
from nvmf_vfio.state.memory import Refused
from nvmf_vfio.state.registers import CC_EN
from nvmf_vfio.uplink import Uplink

log = logging.getLogger(__name__)

_BATCH = 64
_TURN = 0.002
"""Messages, and about the seconds, that one guest gets before the others have their turn."""
_WAKE_AFTER = 10.0
"""Seconds without a target after which the guest's driver is told; Linux gives an I/O 30 s."""
_MAX_REFUSALS_LOGGED = 16


class Session:
    """A connected guest.

    :param store: already holds the connection and the record (`conn`, `record`).
    :param on_end: called once when the guest has gone.
    """

    def __init__(
        self,
        name: str,
        target: Path,
        wire: Wire,
        record: Descriptor,
        store: FdStore,
        *,
        is_target_ready: Callable[[], bool],
        on_end: Callable[[], None],
    ) -> None:
        self.name = name
        self.statistics = Statistics()
        self.controller = Controller()
        self._wire = wire
        self._store = store
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._journal = Journal(record, store, on_failure=self._fail, on_late=self._late)
        self._uplink = Uplink(
            name,
            target,
            self.controller,
            is_target_ready=is_target_ready,
            on_request=self._send,
            on_online=self._target_online,
            on_lost=self.target_gone,
        )
        self._refusals = 0
        self._prefetching: asyncio.Task[None] | None = None
        self._open = True

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the guest."""
        self._wire.attach(self._guest_readable, self._fail)

    def resume(self, stored: dict[str, StoredFd]) -> None:
        """Take over from an endpoint that was killed: what it recorded is what happened.

        A request that was recorded but is still on the socket was not taken yet. A request that was taken has not been
        answered, and is answered now. If the reply was recorded but not sent, QEMU waits for its time-out (5 s) and
        goes on.
        """
        document = self._journal.state
        if document is None:
            raise ProtocolError("the record is empty")
        try:
            self.controller.load_json(document, stored)
            self.statistics = Statistics(**document["statistics"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the record makes no sense: {error!r}") from error
        self.controller.target_lost()
        self.statistics.lost_at = time.monotonic()
        unread = self._wire.peek()
        self._journal.restore(unread, stored)
        if unread:
            unread.close()
        self.start()
        self._answer_pending()
        self._store.remove_others(self.controller.fd_names())

    def close(self) -> None:
        """End everything that belongs to this guest. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._uplink.close()
        self._journal.close()
        with contextlib.suppress(OSError):
            # The keeper's copy of the descriptor keeps the connection open a little longer than `close` here.
            self._wire.socket.shutdown(socket.SHUT_RDWR)
        self._wire.close()
        self._store.close()
        self._on_end()

    def _fail(self, reason: str) -> None:
        if self._open:
            log.warning("%s: connection closed: %s", self.name, reason)
            self.close()

    # -- targets -------------------------------------------------------------------------------------------------

    def target_ready(self) -> None:
        """A target serves this controller (again)."""
        self._uplink.bring_up()

    def target_gone(self) -> None:
        """The target is gone, or goes. What it had in flight may still land until `target_drained`."""
        self._uplink.drop()
        if self.controller.version is not None:
            self.controller.target_lost()
            if self.statistics.lost_at is None:
                self.statistics.lost_at = time.monotonic()
            self._save()
        self._answer_pending()

    def target_drained(self) -> None:
        """Nothing of the old target is in flight any more."""
        self.controller.drained = True
        if not self._uplink.online:
            self._answer_pending()
            self._loop.call_later(_WAKE_AFTER, self._wake_without_target)

    def _wake_without_target(self) -> None:
        """The outage lasts: the driver is better off waiting for RDY in a reset than for I/O that it will time out.

        Linux 6.12 has been seen to lock up in `nvme_timeout` when what times out is a flush.
        """
        waits = self.controller.phase is Phase.FAILED and self.controller.drained
        if self._open and not self._uplink.online and waits:
            self.controller.wake()
            self._save()

    def _target_online(self) -> None:
        """The target knows all that the guest has told its predecessors. No message of the guest's comes in between."""
        if self.controller.version is not None:
            if self.controller.phase is not Phase.FAILED and not self._uplink.proxy:
                self._uplink.tell_registers()
            woken = self.controller.target_ready()
            log.info("%s: target ready, guest %s", self.name, "woken" if woken else self.controller.phase)
            self._save()
        else:
            self.controller.phase = Phase.LIVE
        for pending in self._journal.pending:
            self._forward(pending)

    # -- the guest -----------------------------------------------------------------------------------------------

    def _guest_readable(self) -> None:
        until = time.monotonic() + _TURN
        try:
            for _ in range(_BATCH):
                if time.monotonic() > until or self._journal.is_full:
                    break
                message = self._wire.peek() if self._open else None
                if message is None:
                    break
                self._take(message)
            if self._open:
                self._journal.note_partial(partial=self._wire.is_partial)
                self._wire.hold(self._journal.is_full)
        except Closed:
            log.info("%s: guest disconnected", self.name)
            self.close()
        except ProtocolError as error:
            self._fail(str(error))
        except OSError as error:
            # No descriptors left, or no memory: this guest's own connection ends, and gives back what it has.
            self._fail(f"cannot serve it: {error}")
        except BaseException:
            # A message that cannot be handled is still there: it must not be tried for ever.
            self.close()
            raise

    def _take(self, message: Message) -> None:
        """Handle one message that is still on the socket, or was taken off it piecemeal."""
        self.statistics.messages += 1
        header = message.header
        if header.is_reply:
            self._wire.consume()
            message.close()
            self._uplink.answer(message)
            return
        try:
            self._journal.admit(header)
        except ProtocolError:
            message.close()
            raise
        try:
            command, request = decode(header, message.body, versioned=self.controller.version is not None)
        except ProtocolError as error:
            message.close()
            self._wire.consume()
            self._journal.note_partial(partial=False)
            self._refuse(header, errno.EINVAL, error)
            return
        stored: list[StoredFd] = []
        try:
            while message.descriptors:
                stored.append(self._store.push(message.descriptors.pop(0)))
        except OSError:
            message.close()
            raise
        pending = Pending(header, message.body, command, request, stored, self._loop.time())
        if header.wants_reply:
            self._journal.add(pending)
        if not self._wire.consume():
            release(stored)
        self._handle(pending)

    def _handle(self, pending: Pending) -> None:
        """A request that is recorded and off the socket: pass it on, or answer it."""
        request = pending.request
        try:
            self.controller.check(request, [stored.descriptor for stored in pending.stored])
        except Refused as error:
            release(pending.stored)
            self._finish(pending)
            self._refuse(pending.header, error.errno, error)
            return
        new = self.controller.look(request)
        if self._uplink.online and self.controller.phase is Phase.FAILED and any(c.is_event_request for c in new):
            # It had none when the target came back.
            self.controller.wake()
        if isinstance(request, DmaMap | DmaUnmap):
            # QEMU sends the changes of a whole transaction without waiting: the next is judged by what this one leaves.
            self._remember(pending)
        passed_on = self._uplink.online and not self.controller.is_local(request)
        if passed_on and self._uplink.proxy and is_admin_doorbell(request):
            self._uplink.proxy.submit(new)
            if any(command.is_event_request for command in new):
                # The last thing that a driver does when it sets its controller up.
                self.statistics.back()
            passed_on = False
        if pending.header.wants_reply:
            if passed_on:
                self._forward(pending)
            else:
                self._answer(pending)
            return
        if passed_on and self._uplink.link:
            self._uplink.link.post(pending.command, pending.body)
        self._took_effect(pending)

    def _refuse(self, header: Header, number: int, reason: Exception) -> None:
        self._refusals += 1
        if self._refusals <= _MAX_REFUSALS_LOGGED:
            log.warning("%s: refused: %s", self.name, reason)
        self._reply(header, error=number)

    def _finish(self, pending: Pending) -> None:
        """It is about to be answered, which makes room for another."""
        self._journal.finish(pending)
        if self._open:
            self._wire.hold(self._journal.is_full)

    def _forward(self, pending: Pending) -> None:
        self._uplink.forward(pending, self._replied)
        self._journal.expect(pending)

    def _replied(self, pending: Pending, reply: Message) -> None:
        """The target has answered a guest's request."""
        if pending not in self._journal:
            # Answered here in the meantime, because the target was too slow.
            reply.close()
            return
        if reply.header.flags & Flag.ERROR:
            reply.close()
            if isinstance(pending.request, DmaMap):
                self.controller.memory.unmap(DmaUnmap(0, pending.request.address, pending.request.size))
                self._save()
            else:
                release(pending.stored)
            self._finish(pending)
            self._reply(pending.header, error=reply.header.error)
            return
        try:
            knew = self.controller.seen_ready
            body = replies.from_target(self.controller, pending, reply)
        except ProtocolError as error:
            reply.close()
            self._fail(f"from the target: {error}")
            return
        if self.controller.seen_ready and self.controller.phase is Phase.LIVE:
            self.statistics.back()
        if self.controller.seen_ready and not knew:
            self._save()
        self._took_effect(pending)
        self._finish(pending)
        descriptors, reply.descriptors = reply.descriptors, []
        self._reply(pending.header, body, descriptors)
        if pending.command is Command.VERSION:
            self._prefetching = self._loop.create_task(self._prefetch())
        elif pending.command is Command.DEVICE_SET_IRQS and self._uplink.proxy:
            self._uplink.proxy.reclaim()

    async def _prefetch(self) -> None:
        await self._uplink.prefetch()
        self._save()

    # -- answers from here ---------------------------------------------------------------------------------------

    def _answer_pending(self) -> None:
        """Answer everything that a target was to answer, in order."""
        for pending in self._journal.pending:
            pending.sent = False
            self._answer(pending)

    def _answer(self, pending: Pending) -> None:
        """Answer in the target's place. What only a target can answer waits for one."""
        if pending.command is Command.DEVICE_RESET and not self.controller.drained and not pending.sent:
            # After a reset the guest's firmware uses memory anew: nothing may land there any more.
            self._journal.expect(pending)
            return
        try:
            body = replies.without_target(self.controller, pending)
        except Refused as error:
            self._finish(pending)
            self._reply(pending.header, error=error.errno)
            return
        if body is None:
            return
        self._took_effect(pending)
        self._finish(pending)
        self._reply(pending.header, body)

    def _remember(self, pending: Pending) -> None:
        pending.remembered = True
        self._uplink.tell_too(pending)
        self.controller.remember(pending.request, pending.stored)
        if changes_state(pending.request):
            self._save()

    def _took_effect(self, pending: Pending) -> None:
        """Remember a request, and what follows from it when a controller that had failed is reset."""
        was = self.controller.phase
        if not pending.remembered:
            self._remember(pending)
        if self._uplink.online and was is Phase.FAILED and self.controller.phase is Phase.IDLE:
            # The driver resets its controller: from here on the new target is its own.
            self.controller.phase = Phase.LIVE
            self._uplink.tell_registers()
            self._save()
        elif self._uplink.proxy and not self.controller.cc & CC_EN and self._uplink.online:
            self._uplink.end_proxy()

    def _late(self, pending: Pending) -> None:
        """The target does not answer: QEMU must not wait for it."""
        log.warning("%s: no reply to %s in time", self.name, pending.command.name)
        self._answer(pending)
        if pending in self._journal:
            self._finish(pending)
            self._reply(pending.header, error=errno.ETIMEDOUT)

    def _save(self) -> None:
        document = self.controller.to_json()
        document["statistics"] = vars(self.statistics)
        self._journal.save(document)

    def _reply(
        self, header: Header, body: bytes = b"", descriptors: list[Descriptor] | None = None, *, error: int = 0
    ) -> None:
        if header.wants_reply:
            flags = Flag.REPLY | (Flag.ERROR if error else 0)
            self._send(Header(header.id, header.command, 0, flags, error), body, descriptors or [])

    def _send(self, header: Header, body: bytes, descriptors: list[Descriptor]) -> None:
        self.statistics.messages += 1
        self._wire.deliver(header, body, descriptors)

    def status(self) -> dict[str, Any]:
        """For `nvmuser status`."""
        return {
            "controller": self.name,
            "phase": self.controller.phase.value,
            "online": self._uplink.online,
            "pid": self._wire.peer_pid,
            **{k: v for k, v in vars(self.statistics).items() if k != "lost_at"},
        }
