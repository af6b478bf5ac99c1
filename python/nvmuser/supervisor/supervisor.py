"""The supervisor of one state directory: keeps a target and an endpoint running, and everything wanted in them.

Owns both processes and the control socket. It decides *when* something is started, reported or applied; how is known to
`targets`, `endpoint` and `nvmuser.reconcile.engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvmuser.errors import NvmuserError, TargetError
from nvmuser.hostfs import hugepages
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.renaming import rename
from nvmuser.rpc import Server
from nvmuser.supervisor import facts, logs, occupancy, reroutes, room
from nvmuser.supervisor.backoff import Backoff
from nvmuser.supervisor.doors import Doors
from nvmuser.supervisor.endpoint import EndpointProcess
from nvmuser.supervisor.history import History
from nvmuser.supervisor.settings import Settings
from nvmuser.supervisor.spdk import MEMORY_MIB, Options, Target, choose_spdk
from nvmuser.supervisor.targets import Targets
from nvmuser.toolchain import Spdk
from nvmuser.toolchain.spdk import check_prefix

log = logging.getLogger(__name__)

_STOP_GRACE = 10.0
_OBJECT = "object "
"""How what a trouble is about begins where it is an object."""


class Supervisor:
    """See the module. `run` is its whole life."""

    def __init__(self, state: StateDir, spdk: Spdk, options: Options, settings: Settings) -> None:
        self._state = state
        self._options = replace(options, hugepages=settings.hugepages)
        # Asked before the target takes them; whether there are enough is asked when one is started.
        usable = not hugepages.why_unusable(MEMORY_MIB << 20)
        self._hugepages = usable if settings.hugepages is None else settings.hugepages
        self._settings = settings
        self._endpoint = EndpointProcess(state)
        self._engine = Engine(state)
        self.history = History()
        self._doors = Doors(self._endpoint, self._engine, self.history)
        self._targets = Targets(state, spdk, self.history, settings.limits, self._wanted)
        self._changing = asyncio.Lock()
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._died_at: float | None = None
        self._planned = False
        self._took_over = False
        self._refused = asyncio.Event()
        self._refusal: NvmuserError | None = None

    # -- life ------------------------------------------------------------------------------------------------

    async def run(self, on_ready: asyncio.Future[None]) -> None:
        """Serve until stopped. `on_ready` gets its result when everything wanted is there, or why it cannot be."""
        names = ("change", "rename", "reconcile", "status", "drift", "restart", "upgrade", "hold", "stand_by", "stop")
        methods: dict[str, Callable[..., Awaitable[Any]]] = {name: getattr(self, name) for name in names}
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        async with Server(self._state.control_socket, methods):
            try:
                await self._take_over()
                if self._targets.current is None:
                    await self._targets.next()
                async with asyncio.TaskGroup() as tasks:
                    small_logs = logs.keep_small(self._state.logs, self._settings.limits)
                    watchers = [self._watch_target(), self._watch_endpoint(), self._doors.keep_open(), small_logs]
                    watchers.append(reroutes.follow(self._state, self._engine, self.reconcile))
                    watching = [tasks.create_task(watcher) for watcher in watchers]
                    failure = await self._wait_ready(on_ready)
                    if failure is None:
                        await self._stopping.wait()
                    for task in watching:
                        task.cancel()
                if failure:
                    raise failure
            finally:
                # A supervisor that fails leaves the guests their target and endpoint; the next one takes them over.
                if self._stopping.is_set() or not on_ready.done():
                    await self._end()

    async def _wait_ready(self, on_ready: asyncio.Future[None]) -> NvmuserError | None:
        """Returns why a target that nobody uses yet cannot be brought up. One that was taken over goes on as it is."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._stopping, self._refused)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._refusal and not (self._ready.is_set() or self._stopping.is_set() or self._took_over):
            return self._refusal
        if not on_ready.done():
            on_ready.set_result(None)
        return None

    async def _take_over(self) -> None:
        """Find what an earlier supervisor has left running. A target without its endpoint has lost its guests'
        connections."""
        if await self._endpoint.adopt():
            self._took_over = True
            if await self._targets.adopt():
                return
            self._died_at = time.monotonic()
            self._tell("gone", "drained")
            return
        if await self._targets.adopt():
            await self._targets.end()
        await self._endpoint.start()

    async def _end(self) -> None:
        self._ready.clear()
        await self._endpoint.stop()
        if (target := self._targets.current) and target.process.alive:
            await self._engine.release(target.rpc)
        await self._targets.end()
        with contextlib.suppress(OSError):
            self._state.rpc_socket.unlink(missing_ok=True)
        self._engine.close()

    def _wanted(self) -> Options:
        said = self._engine.target_settings()
        return replace(self._options, profile=said.profile, cores=said.cores, max_controllers=said.max_controllers)

    # -- the target ------------------------------------------------------------------------------------------

    async def _watch_target(self) -> None:
        """Bring the target up, wait for its death, get another; for ever."""
        while True:
            target = self._targets.current or await self._targets.next_for_certain()
            bringing_up = asyncio.ensure_future(self._bring_up(target))
            try:
                # It may die at any point of this, and guests learn of it at once.
                await target.process.wait()
            finally:
                bringing_up.cancel()
                await asyncio.gather(bringing_up, return_exceptions=True)
            await self._bury()

    async def _bring_up(self, target: Target) -> None:
        """Everything wanted into this target, then the guests; as often as it takes."""
        self._targets.point_to(target)
        backoff = Backoff()
        while not await self._try_bring_up(target):
            backoff.failed()
            await backoff.wait()
        self._ready.set()
        await self._open_doors()
        self._targets.is_ready()
        if self._died_at is not None:
            self.history.ready_after = time.monotonic() - self._died_at
            self._died_at = None
        log.info("target %d ready", target.process.pid)
        if self._settings.standby and self._targets.standby is None:
            await self._targets.raise_standby()

    async def _try_bring_up(self, target: Target) -> bool:
        try:
            async with self._changing:
                self._engine.rpc = target.rpc
                outcome = await self._engine.reconcile()
        except (NvmuserError, OSError) as error:
            # Its end is seen elsewhere. Else it may answer later, or there may be room again.
            if target.process.alive and not target.rpc.closed:
                reason = f"target {target.process.pid} is not ready: {error}"
                self.history.note("target", reason)
                self._refusal = TargetError(reason)
                self._refused.set()
            return False
        self._settle(outcome)
        return True

    def _settle(self, outcome: Outcome) -> None:
        """Everything wanted has been looked at: what is wrong with objects is this, and nothing else any more."""
        if not outcome.pending:
            self.history.hold_each(_OBJECT, {f"{_OBJECT}{p.object}": str(p) for p in outcome.problems})

    async def _bury(self) -> None:
        """The target has ended and is reaped: nothing that it had in flight can land any more."""
        self._ready.clear()
        self._died_at = time.monotonic()
        self._tell("gone", "drained")
        self._engine.rpc = None
        dead = self._targets.bury(planned=self._planned)
        self._planned = False
        log.warning("target %d %s", dead.process.pid, dead.process.ending)
        await dead.close()

    def _tell(self, *states: str) -> None:
        """Report the target's state to the guests of its controllers."""
        controllers = self._engine.controllers()
        for state in states:
            self._endpoint.target(state, controllers)

    async def _open_doors(self) -> None:
        """Also for controllers that are new: the target that is ready has them."""
        await self._doors.open()
        if self._ready.is_set():
            self._tell("ready")

    # -- the endpoint ----------------------------------------------------------------------------------------

    async def _watch_endpoint(self) -> None:
        """An endpoint that dies takes every guest's connection to the target with it: both start again."""
        backoff = Backoff()
        while True:
            await self._endpoint.process.wait()
            log.warning("endpoint %s", self._endpoint.process.ending)
            target = self._targets.current
            if target:
                # What it has in flight must end before the guests go on, and only its end shows that.
                await target.process.kill()
            backoff.worked()
            while True:
                try:
                    await self._endpoint.replace()
                    self.history.resolve("endpoint")
                    break
                except (TargetError, OSError) as error:
                    self.history.note("endpoint", str(error))
                    backoff.failed()
                    await backoff.wait()
            await self._doors.open()
            if self._targets.current is None or self._targets.current is target:
                self._tell("drained")
            else:
                self._tell("ready")

    # -- methods of the control socket -----------------------------------------------------------------------

    async def change(self, change: dict[str, Any]) -> dict[str, Any]:
        """Change what is wanted and carry it out, unless a guest that is connected would lose something by it."""
        wanted = Change.from_json(change)
        # Without the lock: it may take a second, for which no guest is to wait.
        await occupancy.check_losses(self._engine.losses(wanted), self._connected)
        async with self._changing:
            outcome = await self._engine.change(wanted)
        return await self._carried_out(outcome)

    async def rename(self, key: str, name: str) -> dict[str, Any]:
        """Give an object another name; a controller only while no guest is connected to it."""
        old = Key.parse(key)
        one = self._engine.desired().get(old)
        if isinstance(one, Controller) and name != old.name:
            await occupancy.check_unused(one, self._connected)
        async with self._changing:
            outcome = await rename(self._state, self._engine, old, name)
        return await self._carried_out(outcome)

    async def _carried_out(self, outcome: Outcome) -> dict[str, Any]:
        self._settle(outcome)
        await self._open_doors()
        return outcome.to_json()

    async def _connected(self, controllers: Sequence[Controller]) -> dict[str, str]:
        return await occupancy.connected(controllers, await self._endpoint.status(), self._engine.rpc)

    async def reconcile(self) -> dict[str, Any]:
        """Carry out what is wanted and not there yet."""
        async with self._changing:
            outcome = await self._engine.reconcile()
        return await self._carried_out(outcome)

    async def drift(self) -> dict[str, Any]:
        """What differs between wanted and actual."""
        async with self._changing:
            status = await self._engine.status()
        return status.to_json()

    async def status(self) -> dict[str, Any]:
        """Processes, guests and what happened to them."""
        endpoint, target = await asyncio.gather(
            self._endpoint.status(),
            facts.of_target(self._targets, self.history, ready=self._ready.is_set(), hugepages=self._hugepages),
        )
        stalls = [s["longest_stall"] for s in endpoint["sessions"] if s["longest_stall"] is not None]
        return {
            "supervisor": {"pid": os.getpid()},
            "target": target,
            "endpoint": {
                "pid": self._endpoint.process.pid,
                "rss_kib": endpoint["rss_kib"],
                "controllers": endpoint["controllers"],
            },
            "guests": endpoint["sessions"],
            "longest_stall_s": max(stalls, default=None),
            "errors": self._errors(),
        }

    def _errors(self) -> list[str]:
        """What is wrong at this moment, each with its time."""
        if self._targets.stable:
            self.history.resolve("target")
        self.history.hold("warning", self._engine.warnings)
        self.history.hold("room", room.warnings(self._state))
        return [str(trouble) for trouble in self.history.troubles]

    async def stop(self) -> None:
        """Stop everything, after this call has been answered."""
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)

    async def hold(self, seconds: float) -> None:
        """Start no target for so long: an outage, for `nvmuser bench recovery` or for work on the host's storage."""
        self._targets.hold(seconds)

    async def stand_by(self, wanted: bool) -> None:
        """Keep a standby from now on, and after later starts; or none.

        :raises TargetError: that cannot be recorded, or the standby does not start.
        """
        settings = self._settings.with_said(standby=wanted)
        try:
            await asyncio.to_thread(settings.save, self._state)
        except OSError as error:
            raise TargetError(f"{self._state.settings}: {error.strerror}; nothing was changed") from error
        self._settings = settings
        if not wanted:
            await self._targets.drop_standby()
        elif self._ready.is_set():  # else it is raised as soon as guests are served
            await self._targets.raise_standby()
            if self._targets.standby is None:
                raise TargetError(f"the standby does not start now: see {self._state.logs / 'supervisor.log'}")

    async def restart(self) -> None:
        """Replace the target by another process of the same SPDK, with its I/O finished first."""
        await self._replace(self._targets.spdk)

    async def upgrade(self, prefix: str) -> None:
        """Replace the target by a process of the SPDK in `prefix`, now and at later starts."""
        spdk = check_prefix(Path(prefix))
        await self._replace(spdk)
        try:
            choose_spdk(self._state, spdk)
            self.history.resolve("upgrade")
        except OSError as error:
            text = f"{self._state.spdk}: {error.strerror}; the next start uses another SPDK than {prefix}"
            self.history.note("upgrade", text)

    async def _replace(self, spdk: Spdk) -> None:
        """The next target is started before the old one ends."""
        async with self._changing:
            targets, target = self._targets, self._targets.current
            if target is None:
                raise TargetError("no target is running; the supervisor is about to start one")
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
            self._ready.clear()
            self._tell("gone")
            await self._engine.release(target.rpc)
            await target.process.stop(_STOP_GRACE)
            failure = ""
            try:
                await asyncio.to_thread(self._engine.sync_files)
            except TargetError as error:
                failure = str(error)
        await self._ready.wait()
        if failure:
            raise TargetError(f"the target was replaced; what the old one wrote may not be on the disk: {failure}")
