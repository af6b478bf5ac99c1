"""Which target serves, which stands by, and when another is started.

Owns both processes and the numbers by which they are known on disk. What is in them, and who learns of their end, is
the supervisor's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable

from nvmuser.errors import NvmuserError
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.supervisor.backoff import Backoff, Sleep
from nvmuser.supervisor.history import History
from nvmuser.supervisor.logs import Limits, rotate
from nvmuser.supervisor.spdk import Options, Target
from nvmuser.toolchain import Spdk

log = logging.getLogger(__name__)

_STABLE_AFTER = 2.0
"""Seconds of a target's service after which its death is the first again."""
_FREE_DEATHS = 3
"""Guests wait: as long as it may be chance, the next target is started at once."""

Starter = Callable[[StateDir, Spdk, Options, int], Awaitable[Target]]


class Targets:
    """The process of the day of one target, and its standby.

    :param name: of the target.
    :param wanted: how the next target is to be run.
    :param start, sleep, clock: the real ones, or a test's.
    """

    def __init__(
        self,
        state: StateDir,
        spdk: Spdk,
        history: History,
        limits: Limits,
        wanted: Callable[[], Options],
        *,
        name: str = DEFAULT_TARGET,
        start: Starter | None = None,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spdk = spdk
        self.current: Target | None = None
        self.standby: Target | None = None
        self._state = state
        self._history = history
        self._limits = limits
        self._wanted = wanted
        self._name = name
        self._log = state.target_log(name)
        self._starter = start or functools.partial(Target.start, name=name)
        self._sleep = sleep
        self._clock = clock
        self._backoff = Backoff(free=_FREE_DEATHS, sleep=sleep)
        self._generation = 0
        self._hold_until = 0.0
        self._ready_at: float | None = None
        self._raising = asyncio.Lock()

    async def adopt(self) -> bool:
        """Take over what an earlier supervisor has left; its standby is ended."""
        self.current = await Target.adopt(self._state, self.spdk, self._name)
        if self.current:
            self._generation = self.current.generation
        return self.current is not None

    def hold(self, seconds: float) -> None:
        """Start none for so long."""
        self._hold_until = self._clock() + seconds

    @property
    def down(self) -> str | None:
        """Why there is none at this moment, if that is not for a moment only."""
        if self.current is None and self._clock() < self._hold_until:
            return f"held for another {self._hold_until - self._clock():.0f} s"
        if not self._backoff.pause or self._ready_at is not None:
            return None
        times = self._backoff.failures
        return f"{times} targets in a row have failed; up to {self._backoff.pause:g} s between attempts"

    # -- the one that serves -------------------------------------------------------------------------------------

    async def next(self) -> Target:
        """The standby if there is one, else a new process.

        :raises NvmuserError: it does not start.
        :raises OSError: its files cannot be made.
        """
        await self._sleep(max(0.0, self._hold_until - self._clock()))
        await self._backoff.wait()
        standby, self.standby = self.standby, None
        if standby and standby.process.alive and self.fits(standby):
            await standby.unpark()
            self.current = standby
            return standby
        await _discard(standby)
        started = self._clock()
        self.current = await self._start()
        self._history.startup = self._clock() - started
        return self.current

    async def next_for_certain(self, on_failure: Callable[[Exception], None] = lambda error: None) -> Target:
        """The same, as often as it takes.

        :param on_failure: called with each failure.
        """
        while True:
            try:
                return await self.next()
            except (NvmuserError, OSError) as error:
                # Also for want of memory or room: guests wait, and there may be some again.
                self._history.note("target", str(error))
                self._backoff.failed()
                on_failure(error)

    def point_to(self, target: Target) -> None:
        """Let `nvmuser rpc` and others find it."""
        path = self._state.rpc_socket_of(self._name)
        link = path.with_suffix(".new")
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(target.rpc_socket.name)
            link.replace(path)
            self._history.resolve("link")
        except OSError as error:
            text = f"{path}: {error.strerror}; `nvmuser rpc` does not find the target"
            self._history.note("link", text)

    def is_ready(self) -> None:
        """The current one serves."""
        self._ready_at = self._clock()

    @property
    def stable(self) -> bool:
        """Whether the current one has served for a time: what was wrong with those before is over."""
        return self._ready_at is not None and self._clock() - self._ready_at >= _STABLE_AFTER

    def bury(self, *, planned: bool) -> Target:
        """The current one has ended, and is not there any more. A death after a time of service is the first again."""
        assert self.current is not None
        dead, self.current = self.current, None
        was_stable = self.stable
        ready_at, self._ready_at = self._ready_at, None
        if planned or was_stable:
            self._backoff.worked()
            self._history.resolve("target")
        if not planned:
            self._backoff.failed()
            if ready_at is None or self._backoff.failures > 1:
                self._history.note("target", f"target {dead.process.ending}; see {self._log}")
        self._history.restarts += 1
        self._history.last_ending = dead.process.ending
        return dead

    def succeed(self, target: Target) -> None:
        """Another process serves from now on."""
        self.current = target

    async def _start(self) -> Target:
        rotate(self._log, self._limits)
        self._generation += 1
        return await self._starter(self._state, self.spdk, self._wanted(), self._generation)

    # -- the one that stands by ----------------------------------------------------------------------------------

    def fits(self, standby: Target | None) -> bool:
        """Whether it is what would be started now."""
        return standby is not None and standby.spdk == self.spdk and standby.options == self._wanted()

    async def raise_standby(self) -> None:
        """Start the process that takes over, as far as it goes without opening a volume, and park it."""
        async with self._raising:
            if not self.fits(self.standby):
                await self._raise_standby()

    async def _raise_standby(self) -> None:
        stale, self.standby, standby = self.standby, None, None
        await _discard(stale)  # of another SPDK, or another profile
        try:
            standby = await self._start()
            await Engine.prepare(standby.rpc)
            await standby.park()
            self.standby = standby
            self._history.resolve("standby")
            log.info("standby %d parked", standby.process.pid)
        except (NvmuserError, OSError) as error:
            self._history.note("standby", f"no standby: {error}")
        finally:
            # Also when the supervisor is stopped at this moment: it would spin on its core for ever.
            if standby and self.standby is not standby:
                await standby.process.kill()
                await standby.close()

    async def take_standby(self, spdk: Spdk) -> Target | None:
        """A process of this SPDK that is started and serves nobody; None: it does not start, and all is as before."""
        old, self.spdk = self.spdk, spdk
        await self.raise_standby()
        standby, self.standby = self.standby, None
        if standby is None or not standby.process.alive:
            await _discard(standby)
            self.spdk = old
            return None
        await standby.unpark()
        return standby

    async def drop_standby(self) -> None:
        """Do without one from now on."""
        async with self._raising:
            standby, self.standby = self.standby, None
            await _discard(standby)
        self._history.resolve("standby")

    async def end(self) -> None:
        """Stop both, in good order."""
        for target in (self.current, self.standby):
            await _discard(target)
        self.current = self.standby = None
        with contextlib.suppress(OSError):
            self._state.rpc_socket_of(self._name).unlink(missing_ok=True)


async def _discard(target: Target | None) -> None:
    if target:
        await target.unpark()
        await target.stop()
