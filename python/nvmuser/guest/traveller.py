"""One side of a guest's move from host to host of a fleet: a process that a supervisor starts when it is needed.

Owns that side's QEMU while the guest moves. Each step is recorded in etcd (`nvmuser.fleet.travel`), so that a traveller
that is killed is followed by another one, which goes on from there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qemu.qmp import QMPError

from nvmuser.errors import ConflictError, FleetError, GuestError, NotFoundError, NvmuserError, TargetNotRunning
from nvmuser.fleet import journey as states
from nvmuser.fleet import visit
from nvmuser.fleet.fences import Fences
from nvmuser.fleet.journey import Journey
from nvmuser.fleet.session import Session, session
from nvmuser.fleet.settings import FleetSettings
from nvmuser.fleet.storage_fences import fences_of
from nvmuser.fleet.travel import Log, Written
from nvmuser.guest import move, relocate
from nvmuser.guest.qmp import connected
from nvmuser.guest.registry import GuestRecord, registry
from nvmuser.model.remote_path import bracketed
from nvmuser.paths import StateDir
from nvmuser.store.events import Actor
from nvmuser.supervisor import control

_AGAIN_S = 0.2
_LOOK_S = 1.0
_PATIENCE_S = 60.0
"""In which the other side takes its step, as long as nothing is lost by giving up."""

log = logging.getLogger(__name__)


@dataclass
class Side:
    """What both have in common.

    :param steps: state → what is done then; in any other, the other side is waited for.
    """

    state: StateDir
    host: str
    session: Session
    log: Log

    @property
    def steps(self) -> dict[str, Callable[[Written], Awaitable[None]]]:
        raise NotImplementedError

    async def run(self) -> None:
        """Go on from where it is, to the end of this side's part.

        :raises NvmuserError: this side cannot go on.
        """
        while True:
            try:
                now = await self.log.read()
                if now is None or now.journey.state in states.ENDED:
                    return
                if step := self.steps.get(now.journey.state):
                    await step(now)
                else:
                    await self.wait(now)
            except ConflictError as error:
                log.info("%s", error)  # read again
            except NotFoundError:
                return
            except FleetError as error:
                log.info("%s", error)
                await asyncio.sleep(_AGAIN_S)

    async def wait(self, now: Written) -> None:
        """For the other side's step."""
        await self.log.until(lambda journey: journey.state != now.journey.state)

    async def write(self, before: Written, after: Journey) -> None:
        """A step that must not be lost: until etcd answers.

        :raises ConflictError: the other side has taken one meanwhile.
        """
        await _until_answered(lambda: self.log.write(before, after))


class Source(Side):
    """Where the guest is."""

    @property
    def steps(self) -> dict[str, Callable[[Written], Awaitable[None]]]:
        return {
            states.ASKED: self._prepare,
            states.READY: self._await_room,
            states.WAITING: self._send,
            states.ARRIVED: self._forget,
            states.REFUSED: self._stay,
            states.RELEASED: self._end,
        }

    async def _prepare(self, now: Written) -> None:
        """See whether it can leave."""
        name = ""
        try:
            record = self._find(now.journey.controllers[0])
            name = record.name
            _check_machine(record.machine)
            async with relocate.leaving(self.state, record) as source:
                kind = await move.machine_type(source)
            names = tuple(relocate.movable(record))
            ready = replace(now.journey, state=states.READY, guest=record.name, controllers=names, kind=kind)
            ready = replace(ready, machine=record.machine)
            visit.baggage(await self.session.view(), ready)
            await self.log.write(now, ready)
        except FleetError:
            raise
        except NvmuserError as error:
            await self.log.write(now, replace(now.journey, state=states.FAILED, guest=name, reason=str(error)))

    def _find(self, controller: str) -> GuestRecord:
        for record in registry(self.state).list():
            if controller in [Path(path).parent.name for path in record.sockets] and record.running:
                return record
        raise GuestError(f"controller {controller}: no guest uses it that was started with nvmuser on host {self.host}")

    async def _await_room(self, now: Written) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self.wait(now)
        except TimeoutError:
            await self.write(now, now.journey.refused(f"host {now.journey.to} made no room for the guest"))

    async def _send(self, now: Written) -> None:
        """From when it has left on, it never runs here again."""
        journey = now.journey
        record = registry(self.state).get(journey.guest)
        try:
            async with connected(registry(self.state).runtime(record.name).qmp) as source:
                result = await move.resume(source) or await move.send(
                    source, journey.uri, bandwidth=journey.bandwidth, downtime=journey.downtime
                )
                if not await move.has_left(source):
                    raise GuestError("QEMU says that it has sent the guest, and has it still")
        except QMPError as error:
            await self.write(now, replace(journey, state=states.LOST, reason=str(error)))
        except NvmuserError as error:
            lost = not record.running
            state = states.LOST if lost else states.REFUSED
            await self.write(now, replace(journey, state=state, reason=str(error)))
        else:
            went = replace(journey, seconds=result.total, stopped=result.downtime, sent=result.bytes)
            await self.write(now, replace(went, state=states.LEFT))

    async def _forget(self, now: Written) -> None:
        """Its controllers here are closed already, and their records go as the fleet has it."""
        with contextlib.suppress(NotFoundError):
            await registry(self.state).discard(now.journey.guest)
        await self.write(now, replace(now.journey, state=states.DONE))

    async def _stay(self, now: Written) -> None:
        """It has never run there, and does not wait for a destination that may be dead."""
        await self._go_on(now.journey)
        await self.wait(now)

    async def _end(self, now: Written) -> None:
        """Who is nowhere any more leaves the volumes here, for the next."""
        if not await self._go_on(now.journey):
            await _open(self.state, now.journey)
        await self.write(now, replace(now.journey, state=states.FAILED))

    async def _go_on(self, journey: Journey) -> bool:
        """Have it go on here, also where QEMU has sent all of it. False where its QEMU has ended."""
        with contextlib.suppress(NotFoundError):
            if registry(self.state).get(journey.guest).running:
                async with connected(registry(self.state).runtime(journey.guest).qmp) as source:
                    await move.go_on(source)
                return True
        return False


class Destination(Side):
    """Where it is to be."""

    @property
    def steps(self) -> dict[str, Callable[[Written], Awaitable[None]]]:
        return {
            states.READY: self._make_room,
            states.WAITING: self._watch,
            states.LEFT: self._welcome,
            states.LOST: self._look,
            states.REFUSED: self._give_up,
        }

    async def _make_room(self, now: Written) -> None:
        """The guest's controllers, closed, and a QEMU that waits."""
        journey = now.journey
        try:
            _check_machine(journey.machine)
            fences = fences_of(self.state, self.host, lambda: control.load(self.state))
            await self._declare(journey, fences)
            await self._clear(journey)
            await relocate.start_incoming(self.state, journey.guest, journey.machine, journey.kind)
        except FleetError:
            raise
        except NvmuserError as error:
            await visit.give_up(self.session, self.log, now, f"host {self.host}: {error}")
            return
        try:
            async with connected(registry(self.state).runtime(journey.guest).qmp) as qmp:
                uri = await move.expect(qmp, f"tcp:{await self._address()}:0")
            await self.log.write(now, replace(journey, state=states.WAITING, uri=uri))
        except (FleetError, ConflictError):
            await self._end(journey)
            raise
        except NvmuserError as error:
            await self._end(journey)
            await visit.give_up(self.session, self.log, now, f"host {self.host}: {error}")

    async def _declare(self, journey: Journey, fences: Fences) -> None:
        """Past the fleet, in which all of it is the source's still.

        :raises NvmuserError: it cannot be had here.
        """
        change = await visit.expect(self.session, journey, fences, control.load(self.state))
        if not change.keys:
            return
        actor = Actor(f"fleet {self.session.keys.fleet}", "etcd")
        async with control.connected(self.state) as client:
            params = {"change": change.to_json(), "by": actor.to_json()}
            outcome = await client.call("change", params, timeout=None)
        if outcome.get("pending"):
            raise TargetNotRunning("no target runs there")

    async def _clear(self, journey: Journey) -> None:
        """End a QEMU that an earlier one of these processes had wait: nobody knows its address."""
        with contextlib.suppress(NotFoundError):
            record = registry(self.state).get(journey.guest)
            if {Path(path).parent.name for path in record.sockets} == set(journey.controllers):
                await self._end(journey)

    async def _address(self) -> str:
        """By which other hosts reach this one: as it is labelled, else by which it reaches etcd."""
        view = await self.session.view()
        if labelled := view.hosts[self.host].labels.get("address"):
            return labelled
        settings = FleetSettings.required(self.state)
        found = urlsplit(settings.endpoints[0])
        address = await asyncio.to_thread(_towards, found.hostname or "", found.port or 2379)
        return bracketed(address)

    async def _watch(self, now: Written) -> None:
        """QEMU ends when the guest does not come whole; the source hears that too."""
        while registry(self.state).get(now.journey.guest).running:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self.wait(now)
                return
            except TimeoutError:
                pass
        await self.write(now, now.journey.refused(f"host {self.host}: its QEMU has ended"))

    async def _welcome(self, now: Written) -> None:
        """It is here and nowhere else, whatever becomes of it."""
        try:
            async with connected(registry(self.state).runtime(now.journey.guest).qmp) as qmp:
                await move.run(qmp)
        except GuestError as error:
            if registry(self.state).get(now.journey.guest).running:
                raise
            await _open(self.state, now.journey)
            reason = f"it has arrived, and its QEMU there has ended: {error}"
            now = replace(now, journey=replace(now.journey, reason=reason))
        await self._settle(now)

    async def _look(self, now: Written) -> None:
        arrived = False
        if registry(self.state).get(now.journey.guest).running:
            async with connected(registry(self.state).runtime(now.journey.guest).qmp) as qmp:
                if arrived := await move.arrived(qmp):
                    await move.run(qmp)
        if arrived:
            await self._settle(replace(now, journey=replace(now.journey, reason="")))
        else:
            await self._give_up(now)

    async def _settle(self, now: Written) -> None:
        await _until_answered(lambda: visit.settle(self.session, self.log, now, now.journey))

    async def _give_up(self, now: Written) -> None:
        await self._end(now.journey)
        await visit.give_up(self.session, self.log, now, now.journey.reason)

    async def _end(self, journey: Journey) -> None:
        with contextlib.suppress(NotFoundError):
            await registry(self.state).discard(journey.guest, keep_memory=True)


async def _until_answered(write: Callable[[], Awaitable[None]]) -> None:
    """Write what may be written again: until etcd answers."""
    while True:
        try:
            await write()
            return
        except FleetError as error:
            log.info("%s", error)
            await asyncio.sleep(_AGAIN_S)


async def _open(state: StateDir, journey: Journey) -> None:
    """Open the volumes of a guest whose QEMU has ended."""
    for name in journey.controllers:
        with contextlib.suppress(NvmuserError):
            await control.take_back(state, name)


def _check_machine(machine: Mapping[str, Any]) -> None:
    """Check that another host's word has nothing opened or run here but controllers and what nvmuser itself brings.

    :raises GuestError: the guest has more than that.
    """
    for field, what in (
        ("qemu_args", "arguments of its own for QEMU"),
        ("image", "an image that is a file"),
        ("memory_file", "its memory in a file"),
    ):
        if machine.get(field):
            raise GuestError(f"the guest has {what}: such a guest does not move in a fleet")


def _towards(host: str, port: int) -> str:
    """Our address on the way there. Nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


@contextlib.asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """One process for each side: a supervisor that is started again starts another one."""
    with path.open("a") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


async def travel(state: StateDir, controller: str, side: str) -> None:
    """One side's part of a move.

    :param side: `source` or `destination`.
    :raises NvmuserError: it cannot go on.
    """
    settings = FleetSettings.required(state)
    kind = Source if side == "source" else Destination
    async with _alone(state.run / f"move.{controller}.{side}"), session(settings) as one:
        await kind(state, settings.host, one, Log(one, controller)).run()


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m nvmuser.guest.traveller")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("controller")
    parser.add_argument("side", choices=("source", "destination"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s traveller {options.side}: %(message)s")
    try:
        asyncio.run(travel(StateDir(options.state_dir), options.controller, options.side))
    except NvmuserError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
