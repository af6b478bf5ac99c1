"""One guest's connection to one controller, across as many targets as it takes.

Owns the order of events between guest and target. The guest's socket and its requests are `nvmf_vfio.guest`'s, the
target's side is `nvmf_vfio.uplink`'s, and what is remembered and answered `nvmf_vfio.state.controller`'s.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nvmf_vfio import replies
from nvmf_vfio.guest import GuestLink
from nvmf_vfio.keeper.fd_store import FdStore, StoredFd
from nvmf_vfio.link import TargetLink
from nvmf_vfio.migration import positions, target_log
from nvmf_vfio.migration.machine import COMMANDS, Migration
from nvmf_vfio.migration.written import Policy
from nvmf_vfio.pending import Pending, Statistics, changes_state, is_admin_doorbell, release
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command, Flag, ProtocolError
from nvmf_vfio.protocol.messages import DmaMap, DmaUnmap
from nvmf_vfio.protocol.wire import Message, Wire
from nvmf_vfio.state.admin import Outstanding
from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.lifecycle import Phase
from nvmf_vfio.state.memory import Refused
from nvmf_vfio.state.registers import CC_EN
from nvmf_vfio.uplink import Uplink

log = logging.getLogger(__name__)

_QUIESCE_DEADLINE = 10.0
"""Seconds. SPDK gives up after 12.5 s, which then proves nothing; a client of ours gives us up after 20."""
_LEAVE_DEADLINE = 2.0
"""Seconds. A target that lets go ends the I/O too, and has more time for it (`nvmuser.reconcile.transit`)."""
_WAKE_AFTER = 10.0
"""Seconds without a target after which the guest's driver is notified; Linux gives an I/O 30 s."""


class Session:
    """A connected guest.

    :param store: already holds the connection and the record (`conn`, `record`).
    :param ask: puts a question about this controller to the supervisor (`nvmf_vfio.keeper.questions`).
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
        ask: Callable[[str], Awaitable[dict[str, Any]]],
        on_end: Callable[[], None],
        policy: Policy = Policy.LIVE,
    ) -> None:
        self.name = name
        self.controller = Controller()
        self._is_target_ready = is_target_ready
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._migration = Migration(self, ask, policy)
        self._drained = asyncio.Event()
        self._guest = GuestLink(
            name,
            wire,
            record,
            store,
            is_versioned=lambda: self.controller.version is not None,
            on_request=self._requested,
            on_reply=lambda reply: self._uplink.pass_reply(reply),
            on_late=self._late,
            on_end=self.close,
        )
        self._journal = self._guest.journal
        self._uplink = Uplink(
            name,
            target,
            self.controller,
            is_target_ready=lambda: is_target_ready() and not self._migration.still,
            on_request=self._guest.send,
            on_online=self._target_online,
            on_lost=self.target_gone,
            save=self.save,
        )
        self._prefetching: asyncio.Task[None] | None = None
        self._open = True

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the guest."""
        self._guest.start()

    def resume(self, stored: dict[str, StoredFd]) -> None:
        """Take over from an endpoint that was killed: what it recorded is what happened.

        :raises Closed: the guest has disconnected.
        :raises ProtocolError: the record is of no use.
        """
        document = self._journal.state
        if document is None:
            raise ProtocolError("the record is empty")
        try:
            self.controller.load_json(document, stored)
            self._guest.statistics = Statistics(**document["statistics"])
            if migration := document.get("migration"):  # a record of an earlier version has none
                self._migration.load_json(migration)
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the record makes no sense: {error!r}") from error
        self.controller.target_lost()
        self._guest.statistics.lost_at = time.monotonic()
        self._guest.restore(stored)
        self._reply_to_pending()
        self._guest.keep_only(self.controller.fd_names())

    def close(self) -> None:
        """End everything that belongs to this guest. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._migration.close()
        self._uplink.close()
        self._guest.close()
        self._on_end()

    # -- targets -------------------------------------------------------------------------------------------------

    def target_ready(self) -> None:
        """A target serves this controller (again)."""
        if not self._migration.still:
            self._uplink.bring_up()

    def target_gone(self) -> None:
        """The target is gone, or goes. What it had in flight may still land until `target_drained`."""
        self._uplink.drop()
        self._migration.log_lost()
        self._lost()

    def _lost(self) -> None:
        self._drained.clear()
        if self.controller.version is not None:
            self.controller.target_lost()
            if self._guest.statistics.lost_at is None:
                self._guest.statistics.lost_at = time.monotonic()
            self.save()
        self._reply_to_pending()

    async def leave(self) -> None:
        """End all I/O at a target that lives and is about to let go, where its queues can go on at the next.

        The guest's CPUs run, and its driver goes on to put commands into its queues; of a controller that is disabled
        SPDK takes none (our patch 0082, without which there is no 0083). When it does not end, it does as *gone*.
        """
        link = self.serving
        if link is None or self._migration.is_under_way or self.controller.admin.history.queues() is None:
            return
        try:
            async with asyncio.timeout(_LEAVE_DEADLINE):
                if await positions.are_known_to(link) and self.serving is link:
                    await self._leave(link)
        except TimeoutError:
            log.warning("%s: the I/O in flight does not end", self.name)

    async def _leave(self, link: TargetLink) -> None:
        self._uplink.detach()
        self._lost()
        try:
            if await target_log.end_io(link):
                self.controller.target_drained()
                self.controller.learn_positions(await positions.read(link, self.controller.admin.history))
                self.save()
        finally:
            link.close()

    def target_drained(self) -> None:
        """Nothing of the old target is in flight any more."""
        self.controller.target_drained()
        self._migration.written.drained()
        self._drained.set()
        if not self._uplink.online:
            self._reply_to_pending()
            # What the old target asserted stays asserted while the guest waits for its I/O. Its driver, woken, accesses
            # the controller; else Linux turns off the line of all devices on it.
            self._loop.call_later(0 if self.controller.interrupts.is_line else _WAKE_AFTER, self._wake_without_target)

    # -- migration (`nvmf_vfio.migration.machine.Host`) ----------------------------------------------------------

    async def quiesce(self) -> None:
        """End all I/O of the controller; no target serves it then.

        :raises Refused: ETIMEDOUT, it does not end in time.
        """
        link = self._uplink.detach()
        try:
            async with asyncio.timeout(_QUIESCE_DEADLINE):
                if link and self.controller.version is not None:
                    self._lost()
                    written, was_live = self._migration.written, self._migration.written.is_live
                    if await (written.finish(link) if was_live else self._uplink.leave(link)):
                        self.target_drained()
                        if was_live and written.is_trusted:
                            self.controller.learn_positions(await positions.read(link, self.controller.admin.history))
                            self.save()
                while not self.controller.drained:
                    await self._drained.wait()
        except TimeoutError:
            raise Refused(errno.ETIMEDOUT, "the I/O in flight does not end") from None
        finally:
            if link:
                link.close()

    @property
    def serving(self) -> TargetLink | None:
        """The connection to a target that serves the controller, whose driver has set it up."""
        is_set_up = self.controller.admin.event_requested or not self._uplink.proxy
        return self._uplink.link if self._uplink.online and is_set_up else None

    def released(self) -> None:
        """A target may serve the controller again."""
        if self._is_target_ready():
            self.target_ready()
        else:
            self._loop.call_later(_WAKE_AFTER, self._wake_without_target)

    def answer(self, pending: Pending, body: bytes) -> None:
        """Answer a request that is none of a target's."""
        self._guest.finish(pending)
        self._guest.reply(pending.header, body)

    def refuse(self, pending: Pending, error: Refused) -> None:
        """Refuse a request."""
        release(pending.stored)
        self._guest.finish(pending)
        self._guest.refuse(pending.header, error.errno, error)

    def _wake_without_target(self) -> None:
        """Wake the driver when the outage lasts: a reset that waits for RDY survives it, I/O that times out may not.

        Linux 6.12 has been seen to lock up in `nvme_timeout` when what times out is a flush.
        """
        waits = self.controller.phase in (Phase.FAILED, Phase.RESUMABLE) and self.controller.drained
        if self._open and not self._uplink.online and waits and not self._migration.cpus_stopped:
            self.controller.positions_lost()
            self.controller.wake()
            self.save()

    def _target_online(self) -> None:
        """The target has the state that the guest gave its predecessors. No message of the guest's comes in between."""
        if self.controller.version is not None:
            if self.controller.phase is not Phase.FAILED and not self._uplink.proxy:
                self._uplink.send_registers()
            resumed = self.controller.phase is Phase.RESUMABLE
            woken = self.controller.target_ready()
            if resumed:
                # What the last target signalled may not have reached a guest that was about to stand still.
                self.controller.interrupts.signal_all()
                self._uplink.have_it_look()
                self._guest.back()
            log.info("%s: target ready, guest %s", self.name, "woken" if woken else self.controller.phase)
            self.save()
        else:
            self.controller.target_ready()
        for pending in self._journal.pending:
            if pending.command not in COMMANDS:
                self._forward(pending)

    # -- requests ------------------------------------------------------------------------------------------------

    def _requested(self, pending: Pending) -> None:
        """Pass a request on that is recorded and off the socket, or answer it."""
        request = pending.request
        try:
            self.controller.check(request, [stored.descriptor for stored in pending.stored])
        except Refused as error:
            self.refuse(pending, error)
            return
        if pending.command in COMMANDS:
            self._migration.requested(pending)
            return
        submitted = self.controller.observe(request)
        has_event_request = any(command.is_event_request for command in submitted)
        if self._uplink.online and self.controller.phase is Phase.FAILED and has_event_request:
            # The driver had none when the target came back.
            self.controller.wake()
        if isinstance(request, DmaMap | DmaUnmap):
            # QEMU sends the changes of a whole transaction without waiting: the next is judged by what this one leaves.
            if isinstance(request, DmaUnmap):
                self._migration.written.unmapped(request)
            self._remember(pending)
        passed_on = self._uplink.online and not self.controller.is_local(request)
        if passed_on and self._uplink.proxy and is_admin_doorbell(request):
            self._submit_by_proxy(submitted)
            passed_on = False
        if not pending.header.wants_reply:
            if passed_on and self._uplink.link:
                self._uplink.link.post(pending.command, pending.body)
            self._took_effect(pending)
        elif passed_on:
            self._forward(pending)
        else:
            self._reply_locally(pending)

    def _submit_by_proxy(self, submitted: list[Outstanding]) -> None:
        assert self._uplink.proxy is not None
        self._uplink.proxy.submit(submitted)
        if any(command.is_event_request for command in submitted):
            # The last thing that a driver does when it sets its controller up.
            self._guest.back()

    # -- replies of the target -----------------------------------------------------------------------------------

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
            self._target_refused(pending, reply)
            return
        try:
            knew = self.controller.seen_ready
            body = replies.from_target(self.controller, pending, reply)
        except ProtocolError as error:
            reply.close()
            self._guest.fail(f"from the target: {error}")
            return
        if self.controller.seen_ready and self.controller.phase is Phase.LIVE:
            self._guest.back()
        if self.controller.seen_ready and not knew:
            self.save()
        self._took_effect(pending)
        self._guest.finish(pending)
        descriptors, reply.descriptors = reply.descriptors, []
        self._guest.reply(pending.header, body, descriptors)
        if pending.command is Command.VERSION:
            self._prefetching = self._loop.create_task(self._prefetch())
        elif pending.command is Command.DEVICE_SET_IRQS and self._uplink.proxy:
            self._uplink.proxy.reclaim()

    def _target_refused(self, pending: Pending, reply: Message) -> None:
        reply.close()
        if isinstance(pending.request, DmaMap):
            self.controller.forget_map(pending.request)
            self.save()
        else:
            release(pending.stored)
        self._guest.finish(pending)
        self._guest.reply(pending.header, error=reply.header.error)

    async def _prefetch(self) -> None:
        await self._uplink.prefetch()
        self.save()

    # -- replies without a target --------------------------------------------------------------------------------

    def _reply_to_pending(self) -> None:
        """Answer everything that a target was to answer, in order."""
        for pending in self._journal.pending:
            pending.sent = False
            if pending.command in COMMANDS:
                self._migration.requested(pending)
            else:
                self._reply_locally(pending)

    def _reply_locally(self, pending: Pending) -> None:
        """Answer in the target's place. A request that only a target can answer waits for one."""
        if pending.command is Command.DEVICE_RESET and not self.controller.drained and not pending.sent:
            # After a reset the guest's firmware uses the memory again: nothing may land there any more.
            self._journal.expect(pending)
            return
        try:
            body = replies.without_target(self.controller, pending)
        except Refused as error:
            self._guest.finish(pending)
            self._guest.reply(pending.header, error=error.errno)
            return
        if body is None:
            return
        self._took_effect(pending)
        self.answer(pending, body)

    def _late(self, pending: Pending) -> None:
        """The target does not answer: QEMU must not wait for it."""
        log.warning("%s: no reply to %s in time", self.name, pending.command.name)
        self._reply_locally(pending)
        if pending in self._journal:
            self._guest.finish(pending)
            self._guest.reply(pending.header, error=errno.ETIMEDOUT)

    # -- what is remembered --------------------------------------------------------------------------------------

    def _remember(self, pending: Pending) -> None:
        pending.remembered = True
        self._uplink.mirror(pending)
        self.controller.remember(pending.request, pending.stored)
        if changes_state(pending.request):
            self.save()

    def _took_effect(self, pending: Pending) -> None:
        """Remember a request, and hand the controller over if its driver has reset it."""
        if not pending.remembered:
            self._remember(pending)
        if pending.command is Command.DEVICE_RESET:
            self._migration.reset()
        if not self._uplink.online:
            return
        if self.controller.hand_over():
            self._uplink.send_registers()
            self.save()
        elif self._uplink.proxy and not self.controller.cc & CC_EN:
            self._uplink.end_proxy()

    def save(self) -> None:
        """Record everything that a successor has to know."""
        document = self.controller.to_json()
        document["statistics"] = vars(self._guest.statistics)
        document["migration"] = self._migration.to_json()
        self._journal.save(document)

    def status(self) -> dict[str, Any]:
        """The guest, its controller and whether a target is online, for `nvmuser status`."""
        return {
            "controller": self.name,
            "phase": self.controller.phase.value,
            "online": self._uplink.online,
            "moving": self._migration.is_under_way,
            **self._guest.status(),
        }
