"""What both sides of a guest's move in a fleet have in common: steps by the record in etcd, taken until it is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvmuser.errors import ConflictError, FleetError, GuestError, NotFoundError, NvmuserError
from nvmuser.fleet import journey as states
from nvmuser.fleet.journey import Journey
from nvmuser.fleet.session import Session
from nvmuser.fleet.travel import Log, Written
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

_AGAIN_S = 0.2

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
        await until_answered(lambda: self.log.write(before, after))


async def until_answered(write: Callable[[], Awaitable[None]]) -> None:
    """Write what may be written again: until etcd answers."""
    while True:
        try:
            await write()
            return
        except FleetError as error:
            log.info("%s", error)
            await asyncio.sleep(_AGAIN_S)


async def open_volumes(state: StateDir, journey: Journey) -> None:
    """Open the volumes of a guest whose QEMU has ended."""
    for name in journey.controllers:
        with contextlib.suppress(NvmuserError):
            await control.take_back(state, name)


def check_machine(machine: Mapping[str, Any]) -> None:
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
