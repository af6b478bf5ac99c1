"""The supervisor of one state directory: keeps a target and an endpoint running, and everything wanted in them.

    python -m nvmuser.supervisor.supervisor --state-dir DIR [--ready-fd N] …

Owns both processes, the control socket and the lock on the state directory. It decides *when* something is started,
told or applied; how is known to `spdk`, `endpoint` and `nvmuser.reconcile.engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nvmuser.errors import NvmuserError, RpcError, TargetError
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Server
from nvmuser.supervisor import occupancy
from nvmuser.supervisor.endpoint import EndpointProcess
from nvmuser.supervisor.spdk import Options, Target, choose_spdk, why_no_hugepages
from nvmuser.toolchain import Spdk
from nvmuser.toolchain.spdk import check_prefix

log = logging.getLogger(__name__)

_BACKOFF_FIRST = 0.1
_BACKOFF_LONGEST = 10.0
_STABLE_AFTER = 30.0
"""Seconds after which a target that dies is restarted at once again."""


@dataclass
class History:
    """What happened to the targets of this supervisor. Times in seconds."""

    restarts: int = 0
    last_ending: str = ""
    startup: float | None = None
    """From the decision to start to the RPC socket's answer."""
    ready_after: float | None = None
    """From the death of the target before to everything wanted in this one."""
    errors: list[str] = field(default_factory=list)


class Supervisor:
    """See the module. `run` is its whole life."""

    def __init__(self, state: StateDir, spdk: Spdk, options: Options, *, standby: bool) -> None:
        self._state = state
        self._spdk = spdk
        self._options = options
        # Asked before the target takes them; whether there are enough is asked when one is started.
        self._hugepages = not why_no_hugepages() if options.hugepages is None else options.hugepages
        self._wants_standby = standby
        self._endpoint = EndpointProcess(state)
        self._engine = Engine(state)
        self._target: Target | None = None
        self._standby: Target | None = None
        self._generation = 0
        self._changing = asyncio.Lock()
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._died_at: float | None = None
        self._planned = False
        self._hold_until = 0.0
        self.history = History()

    # -- life ------------------------------------------------------------------------------------------------

    async def run(self, on_ready: asyncio.Future[None]) -> None:
        """Serve until stopped. `on_ready` is told when everything wanted is there, or why it cannot be."""
        names = ("change", "reconcile", "status", "drift", "restart", "upgrade", "hold", "stop")
        methods: dict[str, Callable[..., Awaitable[Any]]] = {name: getattr(self, name) for name in names}
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        async with Server(self._state.control_socket, methods):
            try:
                await self._take_over()
                if self._target is None:
                    await self._next_target()
                async with asyncio.TaskGroup() as tasks:
                    watchers = [tasks.create_task(self._watch_target()), tasks.create_task(self._watch_endpoint())]
                    await self._wait_ready(on_ready)
                    await self._stopping.wait()
                    for watcher in watchers:
                        watcher.cancel()
            finally:
                # A supervisor that fails leaves the guests their target and endpoint; the next one takes them over.
                if self._stopping.is_set() or not on_ready.done():
                    await self._end()

    async def _wait_ready(self, on_ready: asyncio.Future[None]) -> None:
        ready = asyncio.ensure_future(self._ready.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((ready, stopping), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        stopping.cancel()
        if not on_ready.done():
            on_ready.set_result(None)

    async def _take_over(self) -> None:
        """Find what an earlier supervisor has left running. A target without its endpoint has lost its guests'
        connections."""
        if await self._endpoint.adopt():
            self._target = await Target.adopt(self._state, self._spdk)
            if self._target:
                self._generation = int(self._target.rpc_socket.stem.partition("-")[2])
                return
            self._died_at = time.monotonic()
            self._endpoint.target("gone")
            self._endpoint.target("drained")
            return
        if orphan := await Target.adopt(self._state, self._spdk):
            await orphan.stop()
        await self._endpoint.start()

    async def _end(self) -> None:
        self._ready.clear()
        await self._endpoint.stop()
        if self._target and self._target.process.alive:
            await self._engine.release(self._target.rpc)
        for target in (self._target, self._standby):
            if target:
                await target.unpark()
                await target.stop()
        self._state.rpc_socket.unlink(missing_ok=True)
        self._engine.close()

    # -- the target ------------------------------------------------------------------------------------------

    async def _watch_target(self) -> None:
        """Bring the target up, wait for its death, get another; for ever."""
        while True:
            if self._target is None:
                await self._restart_until_it_runs()
            assert self._target is not None
            born = time.monotonic()
            await self._bring_up(self._target)
            await self._target.process.wait()
            await self._bury()
            if not self._planned and time.monotonic() - born < _STABLE_AFTER:
                self._note(f"target {self.history.last_ending}")
            self._planned = False

    async def _restart_until_it_runs(self) -> None:
        delay = _BACKOFF_FIRST
        while self._target is None:
            try:
                await self._next_target()
            except (NvmuserError, OSError) as error:
                # Also a full disk under the state directory: guests wait, and it may be mended.
                self._note(str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, _BACKOFF_LONGEST)

    async def _next_target(self) -> None:
        """The standby if there is one, else a new process."""
        await asyncio.sleep(self._hold_until - time.monotonic())
        standby, self._standby = self._standby, None
        if standby and standby.process.alive and self._fits(standby):
            await standby.unpark()
            self._target = standby
            return
        if standby:
            await standby.unpark()
            await standby.stop()
        started = time.monotonic()
        self._target = await self._start()
        self.history.startup = time.monotonic() - started

    async def _start(self) -> Target:
        self._generation += 1
        return await Target.start(self._state, self._spdk, self._wanted(), self._generation)

    def _wanted(self) -> Options:
        settings = self._engine.target_settings()
        return replace(self._options, profile=settings.profile, cores=settings.cores)

    def _fits(self, standby: Target | None) -> bool:
        return standby is not None and standby.spdk == self._spdk and standby.options == self._wanted()

    async def _bring_up(self, target: Target) -> None:
        """Everything wanted into this target, then the guests."""
        try:
            link = self._state.rpc_socket.with_suffix(".new")
            link.unlink(missing_ok=True)
            link.symlink_to(target.rpc_socket.name)
            link.replace(self._state.rpc_socket)
        except OSError as error:
            self._note(f"{self._state.rpc_socket}: {error.strerror}; `nvmuser rpc` does not find the target")
        try:
            async with self._changing:
                self._engine.rpc = target.rpc
                outcome = await self._engine.reconcile()
        except RpcError as error:
            log.warning("target %d: %s", target.process.pid, error)
            return
        for problem in outcome.problems:
            self._note(str(problem))
        await self._serve()
        self._endpoint.target("ready")
        self._ready.set()
        if self._died_at is not None:
            self.history.ready_after = time.monotonic() - self._died_at
            self._died_at = None
        log.info("target %d ready", target.process.pid)
        if self._wants_standby and self._standby is None:
            await self._raise_standby()

    async def _raise_standby(self) -> None:
        """Start the process that takes over, as far as it goes without opening a volume, and park it."""
        stale, self._standby, standby = self._standby, None, None
        if stale:  # of another SPDK, or another profile
            await stale.stop()
        try:
            standby = await self._start()
            await Engine.prepare(standby.rpc)
        except (NvmuserError, OSError) as error:
            self._note(f"no standby: {error}")
            if standby:
                await standby.stop()
            return
        await standby.park()
        self._standby = standby
        log.info("standby %d parked", standby.process.pid)

    async def _bury(self) -> None:
        """The target has ended and is reaped: nothing that it had in flight can land any more."""
        assert self._target is not None
        dead, self._target = self._target, None
        self._ready.clear()
        self._died_at = time.monotonic()
        self._endpoint.target("gone")
        self._endpoint.target("drained")
        self._engine.rpc = None
        self.history.restarts += 1
        self.history.last_ending = dead.process.ending
        log.warning("target %d %s", dead.process.pid, dead.process.ending)
        await dead.close()

    def _note(self, trouble: str) -> None:
        """For the log, and for `nvmuser status`."""
        log.error("%s", trouble)
        self.history.errors = [*self.history.errors[-9:], trouble]

    # -- the endpoint ----------------------------------------------------------------------------------------

    async def _watch_endpoint(self) -> None:
        """An endpoint that dies takes every guest's connection to the target with it: both begin anew."""
        while True:
            await self._endpoint.process.wait()
            log.warning("endpoint %s", self._endpoint.process.ending)
            target = self._target
            if target:
                # What it has in flight must end before the guests go on, and only its end tells that.
                await target.process.kill()
            delay = _BACKOFF_FIRST
            while True:
                try:
                    await self._endpoint.replace()
                    break
                except (TargetError, OSError) as error:
                    self._note(str(error))
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, _BACKOFF_LONGEST)
            await self._serve()
            if self._target is None or self._target is target:
                self._endpoint.target("drained")
            else:
                self._endpoint.target("ready")

    async def _serve(self) -> None:
        await self._endpoint.serve(self._engine.controllers())
        self._engine.open_sockets()

    # -- methods of the control socket -----------------------------------------------------------------------

    async def change(self, change: dict[str, Any]) -> dict[str, Any]:
        """Change what is wanted and carry it out, unless a guest that is connected would lose something by it."""
        wanted = Change.from_json(change)
        # Without the lock: it may take a second, for which no guest is to wait.
        await occupancy.check_losses(self._engine.losses(wanted), self._connected)
        async with self._changing:
            outcome = await self._engine.change(wanted)
        await self._serve()
        return outcome.to_json()

    async def _connected(self, controllers: Sequence[Controller]) -> dict[str, str]:
        return await occupancy.connected(controllers, await self._endpoint.status(), self._engine.rpc)

    async def reconcile(self) -> dict[str, Any]:
        """Carry out what is wanted and not there yet."""
        async with self._changing:
            outcome = await self._engine.reconcile()
        await self._serve()
        return outcome.to_json()

    async def drift(self) -> dict[str, Any]:
        """What differs between wanted and actual."""
        async with self._changing:
            status = await self._engine.status()
        return status.to_json()

    async def status(self) -> dict[str, Any]:
        """Processes, guests and what happened to them."""
        target, endpoint = self._target, await self._endpoint.status()
        stalls = [s["longest_stall"] for s in endpoint["sessions"] if s["longest_stall"] is not None]
        return {
            "target": {
                "pid": target.process.pid if target else None,
                "ready": self._ready.is_set(),
                "spdk": self._spdk.version,
                "profile": target.options.profile if target and target.options else None,
                "cores": target.options.resolve_cores() if target and target.options else None,
                "hugepages": self._hugepages,
                "standby": self._standby.process.pid if self._standby else None,
                "restarts": self.history.restarts,
                "last_ending": self.history.last_ending,
                "startup_s": self.history.startup,
                "ready_after_s": self.history.ready_after,
            },
            "endpoint": {
                "pid": self._endpoint.process.pid,
                "rss_kib": endpoint["rss_kib"],
                "controllers": endpoint["controllers"],
            },
            "guests": endpoint["sessions"],
            "longest_stall_s": max(stalls, default=None),
            "errors": self.history.errors,
        }

    async def stop(self) -> None:
        """Stop everything, after this call has been answered."""
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)

    async def hold(self, seconds: float) -> None:
        """Start no target for so long: an outage, for `nvmuser bench recovery` or for work on the host's storage."""
        self._hold_until = time.monotonic() + seconds

    async def restart(self) -> None:
        """Replace the target by another process of the same SPDK, with its I/O finished first."""
        await self._replace(self._spdk)

    async def upgrade(self, prefix: str) -> None:
        """Replace the target by a process of the SPDK in `prefix`, now and at later starts."""
        spdk = check_prefix(Path(prefix))
        await self._replace(spdk)
        try:
            choose_spdk(self._state, spdk)
        except OSError as error:
            self._note(f"{self._state.spdk}: {error.strerror}; the next start uses another SPDK than {prefix}")

    async def _replace(self, spdk: Spdk) -> None:
        """The next target is started before the old one ends."""
        async with self._changing:
            target = self._target
            if target is None:
                raise TargetError("no target is running; the supervisor is about to start one")
            self._spdk, old = spdk, self._spdk
            if not self._fits(self._standby):
                try:
                    await self._raise_standby()
                finally:
                    if self._standby is None:
                        self._spdk = old
                if self._standby is None:
                    raise TargetError(f"{spdk.prefix}: the new target does not start; the old one goes on")
            self._planned = True
            self._ready.clear()
            self._endpoint.target("gone")
            await self._engine.release(target.rpc)
            await target.process.stop(10.0)
            self._engine.sync_files()
        await self._ready.wait()


async def supervise(
    state: StateDir, spdk: Spdk, options: Options, *, standby: bool, on_ready: asyncio.Future[None]
) -> None:
    """Run a supervisor; whatever ends it before it was ready goes to `on_ready`."""
    supervisor = Supervisor(state, spdk, options, standby=standby)
    try:
        await supervisor.run(on_ready)
    except NvmuserError as error:
        if on_ready.done():
            raise
        on_ready.set_exception(error)
    finally:
        with contextlib.suppress(OSError):
            state.control_socket.unlink(missing_ok=True)
