"""The replacement of a target's process one controller at a time: the successor is there before the first goes.

Owns the successor until it is the target's process. Each guest waits for its own move alone, in which no process
starts. Whichever of both dies meanwhile, the other has everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nvmuser.errors import NvmuserError, TargetError
from nvmuser.model.keys import Key
from nvmuser.reconcile.succession import Succession
from nvmuser.supervisor.spdk import Target

if TYPE_CHECKING:
    from nvmuser.supervisor.life import Life, Ways

log = logging.getLogger(__name__)

_STOP_GRACE = 10.0


class Rolling:
    """Of one target. Its caller lets nothing be changed meanwhile.

    :param successor: a process that is started, and serves nobody.
    """

    def __init__(self, life: Life, ways: Ways, successor: Target) -> None:
        self.successor = successor
        self._life = life
        self._ways = ways
        self._succession = Succession(ways.engine, life.name, successor.rpc)
        self._over = False

    async def run(self) -> int:
        """Move everything, and end the old process. Returns how many controllers moved.

        :raises TargetError: it is all served by the old process.
        """
        moved, dead = 0, asyncio.create_task(self.successor.process.wait())
        try:
            for keys in self._succession.steps():
                await self._step(keys)
                moved += sum(key.kind == "controller" for key in keys)
                if dead.done():
                    raise TargetError(f"the new process {self.successor.process.ending}")
        except NvmuserError as error:
            if not self._over:  # else the old process has died, and the new one has everything
                await self._back()
                raise TargetError(
                    f"target {self._life.name}: {error}; the old process goes on with all of it"
                ) from error
        finally:
            dead.cancel()
        await self._end_old()
        return moved

    async def _step(self, keys: frozenset[Key]) -> None:
        try:
            await self._succession.step(keys)
        finally:
            self._tell_ready(keys)

    def _tell_ready(self, keys: frozenset[Key]) -> None:
        served = {*self._ways.engine.controllers(self._life.name), *self._succession.controllers}
        self._ways.endpoint.target("ready", served & {key.name for key in keys if key.kind == "controller"})

    async def _back(self) -> None:
        """The old process has everything again, and the new one ends."""
        lost = self._succession.controllers
        self._ways.endpoint.target("gone", lost)
        # Its end is the simplest proof that nothing of its is in flight.
        await self.successor.process.kill()
        self._ways.endpoint.target("drained", lost)
        self._finish()
        await self.successor.close()
        with contextlib.suppress(NvmuserError):  # seen by those who watch it
            await self._ways.engine.reconcile([self._life.name])
        await self._ways.welcome()

    def _finish(self) -> None:
        current = self._life.targets.current
        self._succession.end(current.rpc if current else None)
        self._life.rolling = None
        self._over = True

    async def _end_old(self) -> None:
        old = self._life.targets.current
        if not self._over and old:
            self._life.expect_end()
            await old.process.stop(_STOP_GRACE)

    def predecessor_ended(self) -> None:
        """The old process has ended, as planned or not: the successor is the target's process now."""
        self._life.targets.succeed(self.successor)
        self._finish()


def processes(life: Life) -> Iterator[Target]:
    """Those that serve somebody of a target."""
    if life.targets.current:
        yield life.targets.current
    if life.rolling:
        yield life.rolling.successor
