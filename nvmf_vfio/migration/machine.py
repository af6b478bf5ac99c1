"""The migration of one guest's controller, as vfio-user's DEVICE_FEATURE and MIG_DATA messages ask for it.

Owns the device's state, the document while it is read or written, and whose the volumes are.
Requests are carried out one after the other. How I/O is ended is the session's, who opens volumes the supervisor's.

::

    here:   RUNNING ─ logging starts ─► … RUNNING_P2P ─► STOP: I/O has ended ─► STOP_COPY: volumes given away ─► (gone)
                                                                                └─ given up ─► RUNNING: taken back
    there:  RUNNING ─► RESUMING: the document comes ─► RUNNING_P2P: volumes taken ─► RUNNING

*Live*, the target logs what its I/O writes until the guest is stopped. Where it cannot, or is lost meanwhile, the I/O
ends as soon as logging starts, or at once: nothing can be missed then.

While the controller is *still* no target serves it, and the guest waits as it does in an outage. A state that cannot be
entered is refused where QEMU can go back: nothing else fails here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from nvmf_vfio.keeper.questions import Unanswered, Unasked
from nvmf_vfio.link import TargetLink
from nvmf_vfio.migration import document
from nvmf_vfio.migration.document import Identity
from nvmf_vfio.migration.written import Policy, Written
from nvmf_vfio.pending import Pending
from nvmf_vfio.protocol import migration as wire
from nvmf_vfio.protocol.header import Command, ProtocolError
from nvmf_vfio.protocol.messages import DeviceFeature, MigData
from nvmf_vfio.protocol.migration import DeviceState, Feature, LoggingReport, MigState
from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.memory import Refused

log = logging.getLogger(__name__)

COMMANDS = frozenset({Command.DEVICE_FEATURE, Command.MIG_DATA_READ, Command.MIG_DATA_WRITE})
"""What is answered here, whether there is a target or not."""
_MAX_DATA = 0x10000
"""Bytes of data in one message (`nvmf_vfio.replies` reports it to clients)."""
_EXPECTED_SIZE = 0x4000
"""Bytes of a usual document. QEMU adds it to what it has still to send, and never stops the guest if it is large."""
_RETRY_INTERVAL = 0.2
_RUNNING = (DeviceState.RUNNING, DeviceState.RUNNING_P2P)
_HELD = (DeviceState.STOP_COPY, DeviceState.RESUMING)
_SUPPORTED = {
    Feature.MIGRATION: wire.GET,
    Feature.MIG_DEVICE_STATE: wire.GET | wire.SET,
    Feature.DMA_LOGGING_START: wire.SET,
    Feature.DMA_LOGGING_STOP: wire.SET,
    Feature.DMA_LOGGING_REPORT: wire.GET,
    Feature.MIG_DATA_SIZE: wire.GET,
}


class Host(Protocol):
    """What a migration needs of its session."""

    name: str
    controller: Controller

    async def quiesce(self) -> None:
        """End all I/O of the controller; no target serves it then. What it has written is collected before.

        :raises Refused: it does not end in time.
        """

    @property
    def serving(self) -> TargetLink | None:
        """The connection to a target that serves the controller, whose driver has set it up."""

    def released(self) -> None:
        """A target may serve the controller again."""

    def save(self) -> None:
        """Record the migration too: its state has changed."""

    def answer(self, pending: Pending, body: bytes) -> None:
        """Answer a request."""

    def refuse(self, pending: Pending, error: Refused) -> None:
        """Answer a request with an error."""


class Migration:
    """See the module.

    :param ask: puts a question to the supervisor (`nvmf_vfio.keeper.questions`).
    """

    def __init__(
        self, host: Host, ask: Callable[[str], Awaitable[dict[str, Any]]], policy: Policy = Policy.LIVE
    ) -> None:
        self.written = Written(host.controller.memory, lambda: host.serving, policy)
        self.state = DeviceState.RUNNING
        self.still = False
        """No target may serve the controller."""
        self._away = False
        """The supervisor was told to give the volumes away, or they are still to be taken."""
        self._host = host
        self._ask = ask
        self._outgoing = b""
        self._incoming = bytearray()
        self._expected: Identity = {}
        self._queue: deque[Pending] = deque()
        self._work: asyncio.Task[None] | None = None
        self._taking: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """The guest is gone. Idempotent."""
        for task in (self._work, self._taking):
            if task:
                task.cancel()

    @property
    def cpus_stopped(self) -> bool:
        """Whether the guest's memory may already be on its way, so that nothing may be written to it."""
        return self.still and self.state not in _RUNNING

    @property
    def is_under_way(self) -> bool:
        """Whether the guest is on its way, from here or to here."""
        return self.still or self.written.is_on

    # -- requests ------------------------------------------------------------------------------------------------

    def requested(self, pending: Pending) -> None:
        """Carry out a request, after those that came before it. Idempotent."""
        if any(waiting is pending for waiting in self._queue):
            return
        self._queue.append(pending)
        if self._work is None or self._work.done():
            self._work = self._loop.create_task(self._carry_out())

    async def _carry_out(self) -> None:
        while self._queue:
            pending = self._queue[0]
            try:
                body = await self._reply(pending)
            except (Refused, ProtocolError) as error:
                refusal = error if isinstance(error, Refused) else Refused(errno.EINVAL, str(error))
                self._host.refuse(pending, refusal)
            else:
                self._host.answer(pending, body)
            self._queue.popleft()

    async def _reply(self, pending: Pending) -> bytes:
        request = pending.request
        if isinstance(request, DeviceFeature):
            return await self._feature(request)
        assert isinstance(request, MigData)
        return self._read(request) if pending.command is Command.MIG_DATA_READ else self._write(request)

    async def _feature(self, request: DeviceFeature) -> bytes:
        try:
            feature = Feature(request.flags & wire.INDEX_MASK)
        except ValueError:
            raise Refused(errno.ENOTTY, f"feature {request.flags & wire.INDEX_MASK}") from None
        action = request.flags & (wire.GET | wire.SET)
        if action & ~_SUPPORTED[feature] or not request.flags & (wire.PROBE | action):
            raise Refused(errno.EINVAL, f"{feature.name}: flags {request.flags:#x}")
        if request.flags & wire.PROBE:
            return DeviceFeature(request.argsz, request.flags).pack()
        if action == wire.GET | wire.SET:
            raise Refused(errno.EINVAL, f"{feature.name}: flags {request.flags:#x}")
        if action == wire.SET:
            data = await self._set(feature, request.data)
        elif feature is Feature.DMA_LOGGING_REPORT:
            data = await self._report(request.data)
        else:
            data = self._get(feature)
        return DeviceFeature(DeviceFeature.LAYOUT.size + len(data), request.flags, data).pack()

    def _get(self, feature: Feature) -> bytes:
        match feature:
            case Feature.MIGRATION:
                return (wire.STOP_COPY | wire.P2P).to_bytes(8, "little")
            case Feature.MIG_DEVICE_STATE:
                return MigState(self.state).pack()
            case _:
                return _EXPECTED_SIZE.to_bytes(8, "little")

    async def _report(self, data: bytes) -> bytes:
        asked = LoggingReport.unpack(data, most=_MAX_DATA)
        if not self.written.is_on:
            raise Refused(errno.EINVAL, "a report of written pages, and none are logged")
        was_live = self.written.is_live
        bits = await self.written.report(asked.address, asked.length)
        if was_live and not self.written.is_live:
            # What the target writes from now on, nobody logs.
            with contextlib.suppress(Refused):
                await self._quiesce()
        return LoggingReport(asked.address, asked.length, bits).pack()

    async def _set(self, feature: Feature, data: bytes) -> bytes:
        match feature:
            case Feature.MIG_DEVICE_STATE:
                wanted = MigState.unpack(data).state
                if wanted is not self.state:
                    await self._enter(wanted)
                return MigState(self.state).pack()
            case Feature.DMA_LOGGING_START:
                wire.check_logging_ranges(data)
                await self._start_logging()
            case _:
                self.written.stop()
                self._release()
                self._host.save()
        return b""

    async def _start_logging(self) -> None:
        """From here on nothing is written but what is logged: by the target, or else the I/O ends."""
        await self.written.start()
        if self.written.is_live:
            self._host.save()
            return
        try:
            await self._quiesce()
        except Refused:
            self.written.stop()
            self._release()
            raise

    def log_lost(self) -> None:
        """The target that logged is lost: the I/O does not go on before the migration is over."""
        if self.written.is_live:
            self.still = True
            self.written.lost()

    # -- states --------------------------------------------------------------------------------------------------

    async def _enter(self, wanted: DeviceState) -> None:
        if wanted is DeviceState.ERROR or (DeviceState.RESUMING is wanted and self.state is DeviceState.STOP_COPY):
            raise Refused(errno.EINVAL, f"from {self.state.name} to {wanted.name}")
        if wanted is DeviceState.STOP_COPY:
            if self.state is DeviceState.RESUMING:
                raise Refused(errno.EINVAL, "a document is wanted before one has come")
            await self._give_away()
        elif wanted is DeviceState.RESUMING:
            await self._expect()
        elif self.state is DeviceState.RESUMING:
            self._arrive()
        elif wanted is DeviceState.STOP and self.written.is_live:
            # Refused here, QEMU would reset the device. What has not ended is refused by STOP_COPY.
            with contextlib.suppress(Refused):
                await self._quiesce()
        self._outgoing = self._outgoing if wanted is DeviceState.STOP_COPY else b""
        self.state = wanted
        log.info("%s: %s", self._host.name, wanted.name)
        if wanted in _RUNNING:
            self._run()
        self._host.save()

    def reset(self) -> None:
        """DEVICE_RESET, after which a device runs (linux/vfio.h, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE)."""
        if self.state in (DeviceState.RESUMING, DeviceState.STOP_COPY, DeviceState.STOP):
            self._incoming.clear()
            self._outgoing = b""
            self.state = DeviceState.RUNNING
            self._run()
            self._host.save()

    async def _quiesce(self) -> None:
        if not self.still:
            self.still = True
            self._host.save()
        await self._host.quiesce()

    async def _give_away(self) -> None:
        """Have the volumes closed, and write the document. Whoever has it may open them.

        :raises Refused: they are not closed, or it is not known.
        """
        if self._taking:
            self._taking.cancel()
        await self._quiesce()
        # Before it is asked for: whatever becomes of the answer.
        was_away, self._away = self._away, True
        self._host.save()
        try:
            answer = await self._asked("yield")
        except Refused as error:
            if isinstance(error.__cause__, Unasked):
                self._away = was_away
                self._host.save()
            raise
        self._outgoing = document.pack(document.departing(self._host.controller), answer["identity"])

    async def _expect(self) -> None:
        answer = await self._asked("expect")
        await self._quiesce()
        self._expected = answer["identity"]
        self._incoming.clear()

    async def _asked(self, question: str) -> dict[str, Any]:
        try:
            answer = await self._ask(question)
        except Unanswered as error:
            raise Refused(errno.EIO, f"{question}: {error}") from error
        if answer["error"]:
            raise Refused(errno.EIO, f"{question}: {answer['error']}")
        return answer

    def _arrive(self) -> None:
        """The guest goes on here, unless nothing has come. What has come was judged when it came."""
        if not self._incoming or not document.is_whole(self._incoming):
            return
        arrival = document.unpack(self._incoming, self._expected)
        self._incoming.clear()
        document.land(arrival, self._host.controller)
        self._away = True

    def _run(self) -> None:
        """The guest's CPUs are about to run here."""
        if self._away and (self._taking is None or self._taking.done()):
            self._taking = self._loop.create_task(self._take())
        self._release()

    async def _take(self) -> None:
        """Have the volumes opened, however long it takes: somebody else may still be about to close them."""
        said = ""
        while True:
            try:
                await self._asked("take")
                break
            except Refused as error:
                if str(error) != said:
                    log.warning("%s: %s", self._host.name, error)
                said = str(error)
            await asyncio.sleep(_RETRY_INTERVAL)
        self._away = False
        self._release()
        self._host.save()

    def _release(self) -> None:
        """Let a target serve the controller again, if nothing forbids it any more."""
        if self.still and not self.written.is_on and not self._away and self.state not in _HELD:
            self.still = False
            self._host.released()

    # -- the document --------------------------------------------------------------------------------------------

    def _read(self, request: MigData) -> bytes:
        if self.state is not DeviceState.STOP_COPY:
            raise Refused(errno.EINVAL, f"nothing to read while {self.state.name}")
        size = min(request.size, _MAX_DATA)
        data, self._outgoing = self._outgoing[:size], self._outgoing[size:]
        return MigData(MigData.LAYOUT.size + len(data), len(data), data).pack()

    def _write(self, request: MigData) -> bytes:
        if self.state is not DeviceState.RESUMING:
            raise Refused(errno.EINVAL, f"nothing to write while {self.state.name}")
        self._incoming += request.data
        try:
            # As soon as it is there: QEMU can still refuse the guest, which goes on where it came from.
            if document.is_whole(self._incoming):
                document.unpack(self._incoming, self._expected)
                self._host.save()  # A part is of no use to a successor.
        except Refused:
            self._incoming.clear()
            raise
        return MigData(MigData.LAYOUT.size, request.size).pack()

    # -- the record ----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The migration for the session's record."""
        return {
            "state": int(self.state),
            "still": self.still,
            "away": self._away,
            "logging": self.written.is_on,
            "outgoing": self._outgoing.hex(),
            "incoming": self._incoming.hex(),
            "expected": self._expected,
        }

    def load_json(self, fields: dict[str, Any]) -> None:
        """Take over what `to_json` returned, and go on with it.

        :raises KeyError: a field is missing.
        :raises ValueError: a field has another layout.
        """
        self.state = DeviceState(fields["state"])
        self.still, self._away = fields["still"], fields["away"]
        self._outgoing = bytes.fromhex(fields["outgoing"])
        self._incoming = bytearray.fromhex(fields["incoming"])
        self._expected = fields["expected"]
        if fields["logging"]:
            # Which pages were written when the log was lost, nobody knows.
            self.still = True
            self.written.start_anywhere()
        if self.state in _RUNNING:
            self._run()
