"""One guest's connection to one controller, across as many targets as it takes.

Owns the guest's socket, the connection to the current target, and the order of events between them. What is remembered
and answered is `nvmf_vfio.recovery`'s business.

A guest's message is recorded before it is taken off its socket, and its reply is recorded before it is sent: see
`resume`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvmf_vfio import answers
from nvmf_vfio.descriptors import Descriptor
from nvmf_vfio.link import TargetError, TargetLink, connect
from nvmf_vfio.memory import GuestMemoryError, Refused
from nvmf_vfio.messages import (
    DmaMap,
    DmaUnmap,
    RegionAccess,
    Reset,
    SetIrqs,
    Version,
    decode_request,
)
from nvmf_vfio.pending import Pending, Statistics, changes_state, is_admin_doorbell, release
from nvmf_vfio.protocol import FROM_TARGET, MAX_MESSAGE, Command, Flag, Header, ProtocolError
from nvmf_vfio.proxy import AdminProxy
from nvmf_vfio.recovery import CONFIG, Controller, Phase
from nvmf_vfio.registers import BAR0, CC_EN, Register
from nvmf_vfio.vault import Kept, Record, RecordFull, Vault
from nvmf_vfio.wire import Closed, Message, Wire

log = logging.getLogger(__name__)

_BATCH = 64
_TURN = 0.002
"""Messages, and about the seconds, that one guest gets before the others have their turn."""
_REPLY_DEADLINE = 4.0
"""Seconds that a target may take to answer. QEMU gives up at 5 s, and a reply after that breaks its stream."""
_RETRY_INTERVAL = 1.0
_WAKE_AFTER = 20.0
"""Seconds without a target after which the guest's driver is told; Linux gives an I/O 30 s."""
_MAX_PENDING = 256
_MAX_PENDING_BYTES = 256 << 10
"""Requests without a reply, and what is in them: QEMU has a few tens, of less than 100 bytes. All are in the record."""
_MAX_REFUSALS_LOGGED = 16
_CONFIG_SPACE = 4096
_MAY_BE_POSTED = frozenset({Command.REGION_WRITE, Command.REGION_WRITE_MULTI})
_PENDING_SLOT = 2


class Session:
    """A connected guest.

    :param vault: already holds the connection and the record (`conn`, `record`).
    :param on_end: called once when the guest has gone.
    """

    def __init__(
        self,
        name: str,
        target: Path,
        wire: Wire,
        record: Descriptor,
        vault: Vault,
        *,
        is_target_ready: Callable[[], bool],
        on_end: Callable[[], None],
    ) -> None:
        self.name = name
        self.statistics = Statistics()
        self.controller = Controller()
        self._target = target
        self._wire = wire
        self._vault = vault
        self._is_target_ready = is_target_ready
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._record = Record(record)
        self._pending_record = Record(record, _PENDING_SLOT)
        self._pending: dict[int, Pending] = {}
        self._pending_bytes = 0
        self._asked: set[int] = set()
        self._refusals = 0
        self._partial_recorded = False
        self._link: TargetLink | None = None
        self._online = False
        self._introducing = False
        self._bring_up: asyncio.Task[None] | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._prefetching: asyncio.Task[None] | None = None
        self._proxy: AdminProxy | None = None
        self._open = True

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the guest."""
        self._loop.add_reader(self._wire.socket, self._guest_readable)

    def resume(self, kept: dict[str, Kept]) -> None:
        """Take over from an endpoint that was killed: what it recorded is what happened.

        A request that was recorded but is still on the socket was not taken yet. A request that was taken has not been
        answered, and is answered now. If the reply was recorded but not sent, QEMU waits for its time-out (5 s) and
        goes on.
        """
        document = self._record.document
        if document is None:
            raise ProtocolError("the record is empty")
        try:
            self.controller.load_json(document, kept)
            self.statistics = Statistics(**document["statistics"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the record makes no sense: {error!r}") from error
        self.controller.target_lost()
        self.statistics.lost_at = time.monotonic()
        pending = self._pending_record.document or []
        if pending == "partial":
            raise ProtocolError("killed in the middle of a message that came in pieces")
        unread = self._wire.peek()
        for packed, body_text, names, remembered in pending:
            header = Header.unpack(bytes.fromhex(packed), limit=MAX_MESSAGE)
            body = bytes.fromhex(body_text)
            descriptors = [kept[name] for name in names if name in kept]
            if unread and (unread.header.pack(), unread.body) == (header.pack(), body):
                release(descriptors)
                continue
            command, request = decode_request(header.command, body)
            taken = Pending(header, body, command, request, descriptors, self._loop.time(), remembered=remembered)
            self._add(taken)
        if unread:
            unread.close()
        self._answer_pending()
        self._vault.retain(self.controller.kept_names())
        self.start()

    def close(self) -> None:
        """End everything that belongs to this guest. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._wire.socket)
        self._loop.remove_writer(self._wire.socket)
        if self._bring_up:
            self._bring_up.cancel()
        self._drop_proxy()
        if self._overdue:
            self._overdue.cancel()
        if self._link:
            self._link.close()
        with contextlib.suppress(OSError):
            # The keeper's copy of the descriptor keeps the connection open a little longer than `close` here.
            self._wire.socket.shutdown(socket.SHUT_RDWR)
        self._wire.close()
        self._vault.close()
        self._on_end()

    def _fail(self, reason: str) -> None:
        log.warning("%s: connection closed: %s", self.name, reason)
        self.close()

    # -- targets -------------------------------------------------------------------------------------------------

    def target_ready(self) -> None:
        """A target serves this controller (again)."""
        if self._bring_up is None and self._open:
            self._bring_up = self._loop.create_task(self._introduce())

    def target_gone(self) -> None:
        """The target is gone, or goes. What it had in flight may still land until `target_drained`."""
        if self._bring_up:
            self._bring_up.cancel()
            self._bring_up = None
        if self._link:
            link, self._link = self._link, None
            link.close()
        self._online = False
        self._drop_proxy()
        self._asked.clear()
        if self.controller.version is not None:
            self.controller.target_lost()
            if self.statistics.lost_at is None:
                self.statistics.lost_at = time.monotonic()
            self._save()
        self._answer_pending()

    def target_drained(self) -> None:
        """Nothing of the old target is in flight any more."""
        self.controller.drained = True
        if not self._online:
            self._answer_pending()
            self._loop.call_later(_WAKE_AFTER, self._wake_without_target)

    def _wake_without_target(self) -> None:
        """The outage lasts: the driver is better off waiting for RDY in a reset than for I/O that it will time out.

        Linux 6.12 has been seen to lock up in `nvme_timeout` when what times out is a flush.
        """
        if self._open and not self._online and self.controller.phase is Phase.FAILED and self.controller.drained:
            self.controller.wake()
            self._save()

    async def _introduce(self) -> None:
        """Connect to the target, tell it what the guest has told its predecessors, and wake the guest."""
        while True:
            try:
                link = TargetLink(await connect(self._target), self._target_request, self.target_gone_by_itself)
                self._link = link
                if self.controller.version is not None:
                    await self._replay(link)
                    await self._carry_on(link)
                break
            except (TargetError, ProtocolError, OSError) as error:
                log.error("%s: the target refuses the guest's state: %s", self.name, error)
                self._drop_proxy()
                if self._link:
                    self._link.close()
                    self._link = None
            finally:
                self._introducing = False
            await asyncio.sleep(_RETRY_INTERVAL)
        # No guest's message can come between what follows.
        self._online = True
        if self.controller.version is not None:
            if self.controller.phase is not Phase.FAILED and not self._proxy:
                self._tell_registers()
            woken = self.controller.target_ready()
            log.info("%s: target ready, guest %s", self.name, "woken" if woken else self.controller.phase)
            self._save()
        else:
            self.controller.phase = Phase.LIVE
        for pending in list(self._pending.values()):
            self._forward(pending)

    async def _replay(self, link: TargetLink) -> None:
        assert self.controller.version is not None
        await link.call(Command.VERSION, self.controller.version.pack())
        calls = [link.call(*call) for call in self.controller.replay()]
        self._introducing = True
        try:
            await asyncio.gather(*calls)
        finally:
            for call in calls:
                call.cancel()

    async def _carry_on(self, link: TargetLink) -> None:
        """Take a driver that was setting its controller up through the rest of that."""
        if self.controller.phase is not Phase.STARTING:
            return
        vector_index, _ = self.controller.admin_irq
        proxy = AdminProxy(
            link,
            self.controller.admin,
            self.controller.memory,
            interrupt=self.controller.interrupt,
            vector_index=vector_index,
        )
        self._proxy = proxy
        try:
            await proxy.start(self.controller.cc)
        except GuestMemoryError as error:
            raise TargetError(f"the guest's admin queue is gone: {error}") from error
        if self.controller.phase is not Phase.STARTING:
            raise TargetError("the driver has begun anew")
        log.info("%s: carrying the driver on through its initialisation", self.name)

    def _end_proxy(self) -> None:
        proxy, self._proxy = self._proxy, None
        if proxy:
            _, kept = self.controller.admin_irq
            proxy.end(kept.descriptor if kept else None)

    def _drop_proxy(self) -> None:
        """The target of the proxy is gone, or the guest."""
        if self._proxy:
            self._proxy.close()
            self._proxy = None

    def target_gone_by_itself(self) -> None:
        """The connection ended before the supervisor said anything: it will, unless the target lives and only closed
        it."""
        self._link = None
        self._drop_proxy()
        if self._bring_up and not self._bring_up.done():
            return
        self.target_gone()
        self._loop.call_later(_RETRY_INTERVAL, self._retry)

    def _retry(self) -> None:
        if self._is_target_ready():
            # A live target answers on a new connection only when everything of the old one has ended. One that has
            # died and whose death nobody has told yet does not answer, and is not drained.
            self.target_ready()

    def _target_request(self, message: Message) -> None:
        """The target reads or writes guest memory by message: the guest answers."""
        if message.header.command not in FROM_TARGET:
            message.close()
            raise ProtocolError(f"command {message.header.command} from the target")
        self._asked.add(message.header.id)
        self._send(message.header, message.body, message.descriptors)

    # -- the guest -----------------------------------------------------------------------------------------------

    def _guest_readable(self) -> None:
        until = time.monotonic() + _TURN
        try:
            for _ in range(_BATCH):
                if time.monotonic() > until:
                    break
                message = self._wire.peek() if self._open else None
                if message is None:
                    break
                self._take(message)
            if self._open and self._wire.is_partial:
                self._partial_recorded = True
                self._write(self._pending_record, "partial")
            elif self._partial_recorded:
                self._save_pending()
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
            if self._link and header.command in FROM_TARGET and header.id in self._asked:
                self._asked.discard(header.id)
                self._link.reply(message)
            return
        if header.wants_reply and header.id in self._pending:
            message.close()
            raise ProtocolError(f"message id {header.id} is in use")
        if len(self._pending) >= _MAX_PENDING or self._pending_bytes > _MAX_PENDING_BYTES:
            message.close()
            raise ProtocolError(f"{len(self._pending)} requests without a reply")
        try:
            command, request = decode_request(header.command, message.body)
            if command in FROM_TARGET:
                raise ProtocolError(f"{command.name} from a client")
            if not header.wants_reply and command not in _MAY_BE_POSTED:
                raise ProtocolError(f"{command.name} without a reply")
            if self.controller.version is None and command is not Command.VERSION:
                raise ProtocolError(f"{command.name} before VERSION")
        except ProtocolError as error:
            message.close()
            self._wire.consume()
            if self._partial_recorded:
                self._save_pending()
            self._refuse(header, errno.EINVAL, error)
            return
        kept: list[Kept] = []
        try:
            while message.descriptors:
                kept.append(self._vault.keep(message.descriptors.pop(0)))
        except OSError:
            message.close()
            raise
        pending = Pending(header, message.body, command, request, kept, self._loop.time())
        if header.wants_reply:
            self._add(pending)
        if not self._wire.consume():
            release(kept)
        self._handle(pending)

    def _handle(self, pending: Pending) -> None:
        """A request that is recorded and off the socket: pass it on, or answer it."""
        request = pending.request
        try:
            self.controller.check(request, [kept.descriptor for kept in pending.kept])
        except Refused as error:
            release(pending.kept)
            self._finish(pending)
            self._refuse(pending.header, error.errno, error)
            return
        new = self.controller.look(request)
        if self._online and self.controller.phase is Phase.FAILED and any(c.is_event_request for c in new):
            # It had none when the target came back.
            self.controller.wake()
        if isinstance(request, DmaMap | DmaUnmap):
            # QEMU sends the changes of a whole transaction without waiting: the next is judged by what this one leaves.
            self._remember(pending)
        passed_on = self._online and not self.controller.is_local(request)
        if passed_on and self._proxy and is_admin_doorbell(request):
            self._proxy.submit(new)
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
        if passed_on and self._link:
            self._link.post(pending.command, pending.body)
        self._took_effect(pending)

    def _refuse(self, header: Header, number: int, reason: Exception) -> None:
        self._refusals += 1
        if self._refusals <= _MAX_REFUSALS_LOGGED:
            log.warning("%s: refused: %s", self.name, reason)
        self._reply(header, error=number)

    def _forward(self, pending: Pending) -> None:
        assert self._link is not None
        if pending.command is Command.DEVICE_RESET and self.controller.cc & CC_EN:
            # SPDK's reset leaves the controller enabled, and would go on to read queues in memory that is used anew.
            disabled = (self.controller.cc & ~CC_EN).to_bytes(4, "little")
            body = RegionAccess(Register.CC, BAR0, len(disabled), disabled).pack()
            self._link.request(Command.REGION_WRITE, body, [], Message.close)
        if pending.command is Command.VERSION:
            assert isinstance(pending.request, Version)
            # A second socket for the target's own requests would bypass this process.
            capabilities = {k: v for k, v in pending.request.capabilities.items() if k != "twin_socket"}
            pending.request = Version(pending.request.major, pending.request.minor, capabilities)
            pending.body = pending.request.pack()
        copies = [kept.descriptor.duplicate() for kept in pending.kept]
        self._link.request(pending.command, pending.body, copies, lambda reply: self._replied(pending, reply))
        self._expect(pending)

    def _expect(self, pending: Pending) -> None:
        """This request will be answered, at the latest by ourselves."""
        pending.sent = True
        pending.since = self._loop.time()
        if self._overdue is None:
            self._overdue = self._loop.call_later(_REPLY_DEADLINE, self._check_deadlines)

    def _replied(self, pending: Pending, reply: Message) -> None:
        """The target has answered a guest's request."""
        if self._pending.get(pending.header.id) is not pending:
            # Answered here in the meantime, because the target was too slow.
            reply.close()
            return
        if reply.header.flags & Flag.ERROR:
            reply.close()
            if isinstance(pending.request, DmaMap):
                self.controller.memory.unmap(DmaUnmap(0, pending.request.address, pending.request.size))
                self._save()
            else:
                release(pending.kept)
            self._finish(pending)
            self._reply(pending.header, error=reply.header.error)
            return
        try:
            knew = self.controller.seen_ready
            body = answers.from_target(self.controller, pending, reply)
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
        elif pending.command is Command.DEVICE_SET_IRQS and self._proxy:
            self._proxy.reclaim()

    async def _prefetch(self) -> None:
        """Read what must be known when there is no target: CAP, VS and configuration space."""
        link = self._link
        if link is None:
            return
        wanted = ((BAR0, Register.CAP, 8), (BAR0, Register.VS, 4), (CONFIG, 0, _CONFIG_SPACE))
        try:
            for region, offset, count in wanted:
                body = await link.call(Command.REGION_READ, RegionAccess(offset, region, count).pack())
                data = RegionAccess.unpack(body, with_data=True).data
                if len(data) != count:
                    raise ProtocolError(f"{len(data)} bytes for {count}")
                if region == BAR0:
                    self.controller.registers[offset : offset + count] = data
                else:
                    self.controller.config_space[:] = data
        except (TargetError, ProtocolError) as error:
            log.warning("%s: registers not read: %s", self.name, error)
        self._save()

    # -- answers from here ---------------------------------------------------------------------------------------

    def _answer_pending(self) -> None:
        """Answer everything that a target was to answer, in order."""
        for pending in list(self._pending.values()):
            pending.sent = False
            self._answer(pending)

    def _answer(self, pending: Pending) -> None:
        """Answer in the target's place. What only a target can answer waits for one."""
        if pending.command is Command.DEVICE_RESET and not self.controller.drained and not pending.sent:
            # After a reset the guest's firmware uses memory anew: nothing may land there any more.
            self._expect(pending)
            return
        try:
            body = answers.without_target(self.controller, pending)
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
        if self._introducing and self._link:
            self._tell_too(self._link, pending)
        self.controller.remember(pending.request, pending.kept)
        if changes_state(pending.request):
            self._save()

    def _took_effect(self, pending: Pending) -> None:
        """Remember a request, and what follows from it when a controller that had failed is reset."""
        was = self.controller.phase
        if not pending.remembered:
            self._remember(pending)
        if self._online and was is Phase.FAILED and self.controller.phase is Phase.IDLE:
            # The driver resets its controller: from here on the new target is its own.
            self.controller.phase = Phase.LIVE
            self._tell_registers()
            self._save()
        elif self._proxy and not self.controller.cc & CC_EN and self._online:
            self._end_proxy()

    def _tell_registers(self) -> None:
        for command, body, _ in self.controller.replay_registers():
            if self._link:
                self._link.request(command, body, [], Message.close)

    def _tell_too(self, link: TargetLink, pending: Pending) -> None:
        """The guest's state is on its way to a new target, and this request, which is answered here, changes it."""
        request = pending.request
        is_config = isinstance(request, RegionAccess) and bool(request.data) and request.region == CONFIG
        if is_config or isinstance(request, DmaMap | DmaUnmap | SetIrqs | Reset):
            copies = [kept.descriptor.duplicate() for kept in pending.kept]
            link.request(pending.command, pending.body, copies, Message.close)

    def _check_deadlines(self) -> None:
        """A target that does not answer: QEMU must not wait for it."""
        self._overdue = None
        now = self._loop.time()
        for pending in list(self._pending.values()):
            if pending.sent and now - pending.since >= _REPLY_DEADLINE:
                log.warning("%s: no reply to %s in %g s", self.name, pending.command.name, _REPLY_DEADLINE)
                self._answer(pending)
                if pending.header.id in self._pending:
                    self._finish(pending)
                    self._reply(pending.header, error=errno.ETIMEDOUT)
        sent = [pending.since for pending in self._pending.values() if pending.sent]
        if sent:
            self._overdue = self._loop.call_at(min(sent) + _REPLY_DEADLINE, self._check_deadlines)

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _add(self, pending: Pending) -> None:
        self._pending[pending.header.id] = pending
        self._pending_bytes += pending.size
        self._save_pending()

    def _finish(self, pending: Pending) -> None:
        if self._pending.pop(pending.header.id, None):
            self._pending_bytes -= pending.size
            self._save_pending()

    def _save(self) -> None:
        document = self.controller.to_json()
        document["statistics"] = vars(self.statistics)
        self._write(self._record, document)

    def _save_pending(self) -> None:
        self._partial_recorded = False
        # The descriptors of what is remembered are the controller's, and may have been released since.
        document = [
            [p.header.pack().hex(), p.body.hex(), [] if p.remembered else [k.name for k in p.kept], p.remembered]
            for p in self._pending.values()
        ]
        self._write(self._pending_record, document)

    def _write(self, record: Record, document: Any) -> None:
        if not self._open:
            return
        try:
            record.write(document)
        except (RecordFull, OSError) as error:
            # Told from the event loop: others may be in the middle of telling every guest.
            self._loop.call_soon(self._fail, f"cannot record: {error}")
        else:
            self._vault.settle()

    def _reply(
        self, header: Header, body: bytes = b"", descriptors: list[Descriptor] | None = None, *, error: int = 0
    ) -> None:
        if header.wants_reply:
            flags = Flag.REPLY | (Flag.ERROR if error else 0)
            self._send(Header(header.id, header.command, 0, flags, error), body, descriptors or [])

    def _send(self, header: Header, body: bytes, descriptors: list[Descriptor]) -> None:
        self.statistics.messages += 1
        try:
            self._wire.send(header, body, descriptors)
        except (Closed, ProtocolError) as error:
            self._loop.call_soon(self._fail, f"cannot send: {error or 'the guest is gone'}")
            return
        if self._wire.is_blocked:
            self._loop.add_writer(self._wire.socket, self._guest_writable)

    def _guest_writable(self) -> None:
        try:
            self._wire.flush()
        except Closed:
            self.close()
            return
        if not self._wire.is_blocked:
            self._loop.remove_writer(self._wire.socket)

    def status(self) -> dict[str, Any]:
        """For `nvmuser status`."""
        return {
            "controller": self.name,
            "phase": self.controller.phase.value,
            "online": self._online,
            "pid": _peer_pid(self._wire),
            **{k: v for k, v in vars(self.statistics).items() if k != "lost_at"},
        }


def _peer_pid(wire: Wire) -> int:
    credentials = wire.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid if os.path.exists(f"/proc/{pid}") else 0
