"""The life of one target: its process is brought up with everything that is wanted of it, watched, buried, replaced.

Owns the order of these, and what its guests are told. Which process serves and which stands by is `targets`', what is
in it the engine's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nvmuser.errors import NvmuserError, TargetError
from nvmuser.reconcile.engine import Engine
from nvmuser.supervisor.backoff import Backoff
from nvmuser.supervisor.endpoint import EndpointProcess, check_several
from nvmuser.supervisor.history import History
from nvmuser.supervisor.rolling import Rolling, processes
from nvmuser.supervisor.spdk import Target
from nvmuser.supervisor.targets import Targets
from nvmuser.toolchain import Spdk

log = logging.getLogger(__name__)

_STOP_GRACE = 10.0


@dataclass(frozen=True)
class Ways:
    """What every life needs of the supervisor."""

    engine: Engine
    endpoint: EndpointProcess
    welcome: Callable[[], Awaitable[None]]
    """Has what is wanted been looked at, guests may come."""
    keeps_standby: Callable[[str], bool]
    """Of a target, by its name."""


class Life:
    """Of the target `name`."""

    def __init__(self, name: str, ways: Ways, targets: Targets, history: History) -> None:
        self.name = name
        self.targets = targets
        self.history = history
        self.ready = asyncio.Event()
        """Guests are served."""
        self.refused = asyncio.Event()
        """It could not be brought up, at least once."""
        self.refusal: NvmuserError | None = None
        self._ways = ways
        self._site = ways.engine.site(name)
        self._died_at: float | None = None
        self._planned = False
        self.rolling: Rolling | None = None
        """The replacement of its process, while it goes on."""

    def tell(self, *states: str) -> None:
        """Report the target's state to the guests of its controllers."""
        controllers = self._ways.engine.controllers(self.name)
        for state in states:
            self._ways.endpoint.target(state, controllers)

    async def adopt(self) -> bool:
        """Take over the process that an earlier supervisor has left, and see what is in it."""
        if not await self.targets.adopt():
            self._died_at = time.monotonic()
            return False
        assert self.targets.current is not None
        self._site.rpc = self.targets.current.rpc
        return True

    async def begin(self) -> None:
        """Start a process before anything is wanted of it.

        :raises NvmuserError: it does not start.
        :raises OSError: its files cannot be made.
        """
        self._site.rpc = (await self.targets.next()).rpc

    async def watch(self) -> None:
        """Bring the target up, wait for its death, get another; for ever."""
        while True:
            target = self.targets.current or await self.targets.next_for_certain(self._refuse)
            bringing_up = asyncio.ensure_future(self._bring_up(target))
            try:
                # It may die at any point of this, and guests learn of it at once.
                await target.process.wait()
            finally:
                bringing_up.cancel()
                await asyncio.gather(bringing_up, return_exceptions=True)
            await self._bury()
            if self.rolling:
                self.rolling.predecessor_ended()

    def _refuse(self, error: Exception) -> None:
        self.refusal = error if isinstance(error, NvmuserError) else TargetError(str(error))
        self.refused.set()

    async def _bring_up(self, target: Target) -> None:
        """Everything wanted into this target, then the guests; as often as it takes."""
        self.targets.point_to(target)
        backoff = Backoff()
        while not await self._try_bring_up(target):
            backoff.failed()
            await backoff.wait()
        self.ready.set()
        await self._ways.welcome()
        self.targets.is_ready()
        if self._died_at is not None:
            self.history.ready_after = time.monotonic() - self._died_at
            self._died_at = None
        log.info("target %s ready, process %d", self.name, target.process.pid)
        if self._ways.keeps_standby(self.name) and self.targets.standby is None:
            await self.targets.raise_standby()

    async def _try_bring_up(self, target: Target) -> bool:
        try:
            self._site.rpc = target.rpc
            await self._ways.engine.reconcile([self.name])
        except (NvmuserError, OSError) as error:
            # Its end is seen elsewhere. Else it may answer later, or there may be room again.
            if target.process.alive and not target.rpc.closed:
                reason = f"target {target.process.pid} is not ready: {error}"
                self.history.note("target", reason)
                self._refuse(TargetError(reason))
            return False
        return True

    async def _bury(self) -> None:
        """The process has ended and is reaped: nothing that it had in flight can land any more."""
        self.ready.clear()
        self._died_at = time.monotonic()
        self.tell("gone", "drained")
        self._site.lost()
        dead = self.targets.bury(planned=self._planned)
        self._planned = False
        log.warning("target %s, process %d %s", self.name, dead.process.pid, dead.process.ending)
        await dead.close()

    def expect_end(self) -> None:
        """The process is about to be ended: that is no failure."""
        self._planned = True

    async def roll(self, spdk: Spdk) -> int:
        """Replace the process by another, one controller at a time. Returns how many moved.

        Its caller lets nothing be changed meanwhile, and waits until it is `ready`.

        :raises TargetError: the old one goes on.
        """
        check_several(self._ways.endpoint)
        if self.targets.current is None or not self.ready.is_set():
            raise TargetError(f"target {self.name}: it does not serve at this moment; try again when it does")
        old, successor = self.targets.spdk, await self.targets.take_standby(spdk)
        if successor is None:
            raise TargetError(f"{spdk.prefix}: the new process does not start; the old one goes on")
        self.rolling = Rolling(self, self._ways, successor)
        try:
            return await self.rolling.run()
        except TargetError:
            self.targets.spdk = old
            raise

    async def kill(self) -> Target | None:
        """End the process at once, and return it; what it had in flight has ended then. The next one is started. The
        one that is about to take over from it is ended too."""
        target = self.targets.current
        await asyncio.gather(*(one.process.kill() for one in processes(self)))
        return target

    async def keep_standby(self) -> None:
        """Raise a standby, or do without, as is wanted now.

        :raises TargetError: it does not start.
        """
        if not self._ways.keeps_standby(self.name):
            await self.targets.drop_standby()
        elif self.ready.is_set():  # else it is raised as soon as guests are served
            await self.targets.raise_standby()
            if self.targets.standby is None:
                raise TargetError("the standby does not start now: see `nvmuser target logs supervisor`")

    async def replace(self, spdk: Spdk) -> None:
        """Replace the process by another, whose I/O is finished first. The next one is started before the old one ends.

        Its caller lets nothing be changed meanwhile, and waits until it is `ready`.

        :raises TargetError: the old one goes on.
        """
        targets, target = self.targets, self.targets.current
        if target is None:
            raise TargetError(f"target {self.name}: no process is running; the supervisor is about to start one")
        targets.spdk, old = spdk, targets.spdk
        if not targets.fits(targets.standby):
            try:
                await targets.raise_standby()
            finally:
                if targets.standby is None:
                    targets.spdk = old
            if targets.standby is None:
                raise TargetError(f"{spdk.prefix}: the new target does not start; the old one goes on")
        self._planned = True
        self.ready.clear()
        self.tell("gone")
        await self._site.release()
        await target.process.stop(_STOP_GRACE)

    async def end(self) -> None:
        """Stop its processes, in good order."""
        self.ready.clear()
        if self.rolling:
            await self.rolling.successor.process.kill()
            await self.rolling.successor.close()
        if (target := self.targets.current) and target.process.alive:
            await self._site.release()
        await self.targets.end()
        self._site.lost()
