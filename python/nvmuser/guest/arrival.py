"""A guest comes to this host from another one of its fleet: the destination's steps.

Owns the QEMU that waits for it, and has it run when it has left where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from nvmuser.errors import ConflictError, FleetError, GuestError, NotFoundError, NvmuserError, TargetNotRunning
from nvmuser.fleet import journey as states
from nvmuser.fleet import visit
from nvmuser.fleet.fences import Fences
from nvmuser.fleet.journey import Journey
from nvmuser.fleet.settings import FleetSettings
from nvmuser.fleet.storage_fences import fences_of
from nvmuser.fleet.travel import Written
from nvmuser.guest import move, relocate
from nvmuser.guest.qmp import connected
from nvmuser.guest.registry import registry
from nvmuser.guest.side import Side, check_machine, open_volumes, until_answered
from nvmuser.model.remote_path import bracketed
from nvmuser.store.events import Actor
from nvmuser.supervisor import control

_LOOK_S = 1.0


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
            check_machine(journey.machine)
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
            await open_volumes(self.state, now.journey)
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
        await until_answered(lambda: visit.settle(self.session, self.log, now, now.journey))

    async def _give_up(self, now: Written) -> None:
        await self._end(now.journey)
        await visit.give_up(self.session, self.log, now, now.journey.reason)

    async def _end(self, journey: Journey) -> None:
        with contextlib.suppress(NotFoundError):
            await registry(self.state).discard(journey.guest, keep_memory=True)


def _towards(host: str, port: int) -> str:
    """Our address on the way there. Nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
