"""A guest leaves this host for another one of its fleet: the source's steps.

Owns its QEMU here while it moves. From when the other host may have it run on, it never runs here again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from qemu.qmp import QMPError

from nvmuser.errors import FleetError, GuestError, NotFoundError, NvmuserError
from nvmuser.fleet import journey as states
from nvmuser.fleet import visit
from nvmuser.fleet.journey import Journey
from nvmuser.fleet.travel import Written
from nvmuser.guest import move, relocate
from nvmuser.guest.qmp import connected
from nvmuser.guest.registry import GuestRecord, registry
from nvmuser.guest.side import Side, check_machine, open_volumes

_PATIENCE_S = 60.0
"""In which the other side takes its step, as long as nothing is lost by giving up."""


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
            check_machine(record.machine)
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
            await open_volumes(self.state, now.journey)
        await self.write(now, replace(now.journey, state=states.FAILED))

    async def _go_on(self, journey: Journey) -> bool:
        """Have it go on here, also where QEMU has sent all of it. False where its QEMU has ended."""
        with contextlib.suppress(NotFoundError):
            if registry(self.state).get(journey.guest).running:
                async with connected(registry(self.state).runtime(journey.guest).qmp) as source:
                    await move.go_on(source)
                return True
        return False
