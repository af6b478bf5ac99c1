"""The migration of one guest's controller, as vfio-user's DEVICE_FEATURE and MIG_DATA messages ask for it.

Owns the device's state, the log of written pages, the document while it is read or written, and whose the volumes are.
Requests are carried out one after the other. How I/O is ended is the session's, who opens volumes the supervisor's.

::

    here:   RUNNING ─ logging starts: I/O ends ─► … RUNNING_P2P ─► STOP ─► STOP_COPY: volumes given away ─► (gone)
                                                                            └─ given up ─► RUNNING: taken back
    there:  RUNNING ─► RESUMING: the document comes ─► RUNNING_P2P: volumes taken ─► RUNNING

While the controller is *still* no target serves it, and the guest waits as it does in an outage. A state that cannot be
entered is refused where QEMU can go back: nothing else fails here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from nvmf_vfio.keeper.questions import Unanswered, Unasked
from nvmf_vfio.migration import document
from nvmf_vfio.migration.dirty import DirtyLog
from nvmf_vfio.migration.document import Arrival, Identity
from nvmf_vfio.pending import Pending
from nvmf_vfio.protocol import migration as wire
from nvmf_vfio.protocol.header import Command, ProtocolError
from nvmf_vfio.protocol.messages import DeviceFeature, MigData
from nvmf_vfio.protocol.migration import DeviceState, Feature, LoggingReport, MigState
from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.memory import Refused
from nvmf_vfio.state.registers import Register

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
_REGISTERS = {"cc": Register.CC, "aqa": Register.AQA, "asq": Register.ASQ, "acq": Register.ACQ}
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
        """End all I/O of the controller; no target serves it then.

        :raises Refused: it does not end in time.
        """

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

    def __init__(self, host: Host, ask: Callable[[str], Awaitable[dict[str, Any]]]) -> None:
        self.dirty = DirtyLog()
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
        host.controller.memory.on_write = self.dirty.mark

    def close(self) -> None:
        """The guest is gone. Idempotent."""
        for task in (self._work, self._taking):
            if task:
                task.cancel()

    @property
    def cpus_stopped(self) -> bool:
        """Whether the guest's memory may already be on its way, so that nothing may be written to it."""
        return self.still and self.state not in _RUNNING

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
            except Refused as error:
                self._host.refuse(pending, error)
            except ProtocolError as error:
                self._host.refuse(pending, Refused(errno.EINVAL, str(error)))
            else:
                self._host.answer(pending, body)
            self._queue.popleft()

    async def _reply(self, pending: Pending) -> bytes:
        request = pending.request
        if isinstance(request, DeviceFeature):
            return await self._feature(request)
        assert isinstance(request, MigData)
        if pending.command is Command.MIG_DATA_READ:
            return self._read(request)
        return self._write(request)

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
        data = self._get(feature, request.data) if action == wire.GET else await self._set(feature, request.data)
        return DeviceFeature(DeviceFeature.LAYOUT.size + len(data), request.flags, data).pack()

    def _get(self, feature: Feature, data: bytes) -> bytes:
        match feature:
            case Feature.MIGRATION:
                return (wire.STOP_COPY | wire.P2P).to_bytes(8, "little")
            case Feature.MIG_DEVICE_STATE:
                return MigState(self.state).pack()
            case Feature.MIG_DATA_SIZE:
                return _EXPECTED_SIZE.to_bytes(8, "little")
        asked = LoggingReport.unpack(data, most=_MAX_DATA)
        if not self.dirty.is_on:
            raise Refused(errno.EINVAL, "a report of written pages, and none are logged")
        return LoggingReport(asked.address, asked.length, self.dirty.report(asked.address, asked.length)).pack()

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
                self.dirty.stop()
                self._release()
                self._host.save()
        return b""

    async def _start_logging(self) -> None:
        """From here on nothing is written but what is logged: the I/O ends, and its end is waited for."""
        self.dirty.start()
        try:
            await self._quiesce()
        except Refused:
            self.dirty.stop()
            self._release()
            raise

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
        self._outgoing = document.pack(departing(self._host.controller), answer["identity"])

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
        registers = {register: getattr(arrival, name) for name, register in _REGISTERS.items()}
        masks = {Register.INTMS: arrival.intms, Register.INTMC: arrival.intms}
        lifecycle = {"phase": arrival.phase, "seen_ready": arrival.seen_ready, "io_started": arrival.io_started}
        self._host.controller.arrive(registers | masks, lifecycle, arrival.admin)
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
        if self.still and not self.dirty.is_on and not self._away and self.state not in _HELD:
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
        incoming = self._incoming + request.data
        # As soon as it is there: QEMU can still refuse the guest, which goes on where it came from.
        if document.is_whole(incoming):
            document.unpack(incoming, self._expected)
        self._incoming = incoming
        self._host.save()
        return MigData(MigData.LAYOUT.size, request.size).pack()

    # -- the record ----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The migration for the session's record."""
        return {
            "state": int(self.state),
            "still": self.still,
            "away": self._away,
            "logging": self.dirty.is_on,
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
            self.dirty.start()
            for region in self._host.controller.memory.regions:
                self.dirty.mark(region.map.address, region.map.size)
        if self.state in _RUNNING:
            self._run()


def departing(controller: Controller) -> Arrival:
    """What of a controller travels."""
    fields = controller.to_json()
    return Arrival(
        cc=controller.cc,
        aqa=controller.reg(Register.AQA),
        asq=controller.reg(Register.ASQ, 8),
        acq=controller.reg(Register.ACQ, 8),
        intms=controller.reg(Register.INTMS),
        phase=controller.phase,
        seen_ready=fields["seen_ready"],
        io_started=fields["io_started"],
        admin=fields["admin"],
    )
