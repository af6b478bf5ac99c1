"""The supervisor of one state directory: keeps its targets and an endpoint running, and everything wanted in them.

Owns the endpoint, the control socket, and that one change is made at a time. What happens to each target is its
`life`'s; how things are done is known to `targets`, `endpoint` and `nvmuser.reconcile.engine`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvmuser.errors import NotFoundError, NvmuserError, TargetError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, TargetSettings
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.reconcile.at_once import snapshot_together
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.renaming import rename
from nvmuser.reconcile.rollback import roll_back
from nvmuser.rpc import Server
from nvmuser.store.events import NOBODY, Actor, acting
from nvmuser.supervisor import facts, logs, occupancy, reroutes, room
from nvmuser.supervisor.backoff import Backoff
from nvmuser.supervisor.changes import Changes
from nvmuser.supervisor.choice import choose_spdk
from nvmuser.supervisor.doors import Doors
from nvmuser.supervisor.endpoint import EndpointProcess
from nvmuser.supervisor.fleet_member import FleetMember
from nvmuser.supervisor.handover import Handover
from nvmuser.supervisor.history import History
from nvmuser.supervisor.life import Life, Ways
from nvmuser.supervisor.lives import Lives, Watch
from nvmuser.supervisor.settings import Settings
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import Spdk
from nvmuser.toolchain.spdk import check_prefix

log = logging.getLogger(__name__)

_METHODS = (
    "change",
    "rename",
    "roll_back",
    "snapshot_together",
    "reconcile",
    "status",
    "drift",
    "restart",
    "upgrade",
    "hold",
    "stand_by",
    "follow_fleet",
    "stop",
)
_OBJECT = "object "
"""How what a trouble is about begins where it is an object."""


class Supervisor:
    """See the module. `run` is its whole life."""

    def __init__(self, state: StateDir, spdk: Spdk, options: Options, settings: Settings) -> None:
        self._state = state
        self._settings = settings
        self._changing = asyncio.Lock()
        self._engine = Engine(state)
        self._handover = Handover(state, self._engine, self._changing)
        self._endpoint = EndpointProcess(state, self._handover.answer)
        self.history = History()
        self._doors = Doors(self._endpoint, self._engine, self.history)
        self._changes = Changes(self._engine, self._changing, self._change_targets, self._welcome)
        ways = Ways(self._engine, self._endpoint, self._welcome, self._keeps_standby)
        self._lives = Lives(state, spdk, replace(options, hugepages=settings.hugepages), settings, ways)
        self._engine.transit.guests = self._lives
        self._stopping = asyncio.Event()
        self._fleet = FleetMember(state, self._engine, self.change)
        self._took_over = False
        self._watch: Watch | None = None

    # -- life ------------------------------------------------------------------------------------------------

    async def run(self, on_ready: asyncio.Future[None]) -> None:
        """Serve until stopped. `on_ready` gets its result when everything wanted is there, or why it cannot be."""
        methods: dict[str, Callable[..., Awaitable[Any]]] = {name: getattr(self, name) for name in _METHODS}
        methods["take_back"] = self._handover.take_back
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        async with Server(self._state.control_socket, methods):
            try:
                await self._take_over()
                if self._lives.default.targets.current is None:
                    await self._lives.default.begin()
                async with asyncio.TaskGroup() as tasks:
                    small_logs = logs.keep_small(self._state.logs, self._settings.limits)
                    watchers = [self._watch_endpoint(), self._doors.keep_open(), small_logs]
                    watchers += [reroutes.follow(self._engine, self.reconcile), self._fleet.run()]
                    watching = [tasks.create_task(watcher) for watcher in watchers]
                    self._watch = lambda life: tasks.create_task(life.watch())
                    self._lives.watch(self._watch)
                    failure = await self._wait_ready(on_ready)
                    if failure is None:
                        await self._stopping.wait()
                    for task in (*watching, *self._lives.watch(self._watch)):
                        task.cancel()
                if failure:
                    raise failure
            finally:
                # A supervisor that fails leaves the guests their target and endpoint; the next one takes them over.
                if self._stopping.is_set() or not on_ready.done():
                    await self._end()

    async def _wait_ready(self, on_ready: asyncio.Future[None]) -> NvmuserError | None:
        """Returns why a default target that nobody uses yet cannot be brought up. One that was taken over goes on as it
        is, and another is reported."""
        stopping: asyncio.Future[Any] = asyncio.create_task(self._stopping.wait())
        known: asyncio.Future[Any] = asyncio.gather(*map(_known, self._lives))
        await asyncio.wait([stopping, known], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        known.cancel()
        default = self._lives.default
        if default.refusal and not (default.ready.is_set() or self._stopping.is_set() or self._took_over):
            return default.refusal
        if not on_ready.done():
            on_ready.set_result(None)
        return None

    async def _take_over(self) -> None:
        """Find what an earlier supervisor has left running. A target without its endpoint has lost its guests'
        connections."""
        if await self._endpoint.adopt():
            self._took_over = True
            await self._lives.adopt()
            if not self._endpoint.several and len(list(self._lives)) > 1:
                # Of an older version, which knows one target only: replaced as one that has died is.
                await self._endpoint.process.kill()
            return
        await self._lives.adopt()
        await self._lives.end()
        await self._endpoint.start()

    async def _end(self) -> None:
        await self._endpoint.stop()
        await self._lives.end()
        self._handover.close()
        self._engine.close()

    def _keeps_standby(self, target: str) -> bool:
        return self._settings.standby or self._lives.standby_of(target)

    async def _welcome(self) -> None:
        """What is wanted of some target has been looked at. Also for controllers that are new: it has them."""
        failing = self._engine.problems.items()
        self.history.hold_each(_OBJECT, {f"{_OBJECT}{key}": str(problem) for key, problem in failing})
        await self._doors.open()
        for life in self._lives:
            if life.ready.is_set():
                life.tell("ready")

    # -- the endpoint ----------------------------------------------------------------------------------------

    async def _watch_endpoint(self) -> None:
        """An endpoint that dies takes every guest's connection to the target with it: both start again."""
        backoff = Backoff()
        while True:
            await self._endpoint.process.wait()
            log.warning("endpoint %s", self._endpoint.process.ending)
            # What they have in flight must end before the guests go on, and only their end shows that.
            lives = list(self._lives)
            ended = dict(zip(lives, await asyncio.gather(*(life.kill() for life in lives)), strict=True))
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
            for life in self._lives:
                current = life.targets.current
                life.tell("drained" if current is None or current is ended.get(life) else "ready")

    # -- methods of the control socket -----------------------------------------------------------------------

    async def change(self, change: dict[str, Any], by: dict[str, str] | None = None) -> dict[str, Any]:
        """Change what is wanted and carry it out, unless a guest that is connected would lose something by it.

        :param by: who asks, as `Actor` has it.
        """
        wanted = Change.from_json(change)
        # Without the lock: it may take a second, for which no guest is to wait.
        await occupancy.check_losses(self._engine.losses(wanted), self._connected)
        with acting(Actor.from_json(by) if by else NOBODY):
            return (await self._changes.carry_out(wanted)).to_json()

    async def _change_targets(self, wanted: Change) -> Outcome:
        """A change in which a target begins or ends, or is run otherwise."""
        async with self._changing:
            begun = await self._lives.begin(wanted)
            try:
                outcome = await self._engine.change(wanted)
            except BaseException:
                await self._lives.give_up(begun)
                raise
            self._lives.recorded(begun)
            assert self._watch is not None
            self._lives.watch(self._watch, {life.name for life in begun})
            if await self._lives.drop_gone():
                outcome += await self._engine.reconcile()
        await asyncio.gather(*map(_known, begun))
        await self._follow_standbys(wanted)
        return outcome

    async def _follow_standbys(self, change: Change) -> None:
        """What a change says of standbys takes effect at once."""
        for one in change.update:
            life = self._lives[one.name] if isinstance(one, TargetSettings) and one.name in self._lives else None
            if life and self._keeps_standby(life.name) != (life.targets.standby is not None):
                await life.keep_standby()

    async def rename(self, key: str, name: str, by: dict[str, str] | None = None) -> dict[str, Any]:
        """Give an object another name; a controller only while no guest is connected to it."""
        old = Key.parse(key)
        one = self._engine.desired().get(old)
        if isinstance(one, Controller) and name != old.name:
            await occupancy.check_unused(one, self._connected)
        async with self._changing:
            with acting(Actor.from_json(by) if by else NOBODY):
                outcome = await rename(self._state, self._engine, old, name)
        return await self._carried_out(outcome)

    async def roll_back(self, key: str, snapshot: str, wipe: bool) -> dict[str, Any]:
        """Make a volume in Ceph what a snapshot of it is."""
        async with self._changing:
            outcome = await roll_back(self._engine, Key.parse(key), Key.parse(snapshot), wipe=wipe)
        return await self._carried_out(outcome)

    async def snapshot_together(self, controller: str, name: str, by: dict[str, str] | None = None) -> dict[str, Any]:
        """Make snapshots of all volumes of a controller at one moment."""
        one = self._engine.desired().controller(controller)
        site = self._engine.site(one.target)
        await occupancy.check_not_direct(one, await self._endpoint.status(), site.rpc)
        try:
            async with self._changing:
                with acting(Actor.from_json(by) if by else NOBODY):
                    outcome = await snapshot_together(self._engine, controller, name)
        finally:
            await self._welcome()
        await self.reconcile()  # What was looked at was this alone.
        return outcome.to_json()

    async def _carried_out(self, outcome: Outcome) -> dict[str, Any]:
        await self._welcome()
        return outcome.to_json()

    async def _connected(self, controllers: Sequence[Controller]) -> dict[str, str]:
        endpoint, found = await self._endpoint.status(), dict[str, str]()
        for name in {controller.target for controller in controllers}:
            there = [controller for controller in controllers if controller.target == name]
            found |= await occupancy.connected(
                there, endpoint, self._engine.site(name).rpc if name in self._lives else None
            )
        return found

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
        endpoint, *found = await asyncio.gather(self._endpoint.status(), *map(facts.of_target, self._lives))
        targets = {life.name: one for life, one in zip(self._lives, found, strict=True)}
        stalls = [s["longest_stall"] for s in endpoint["sessions"] if s["longest_stall"] is not None]
        return {
            "supervisor": {"pid": os.getpid()},
            "target": targets[DEFAULT_TARGET],
            "targets": targets,
            "endpoint": {
                "pid": self._endpoint.process.pid,
                "rss_kib": endpoint["rss_kib"],
                "controllers": endpoint["controllers"],
            },
            "guests": endpoint["sessions"],
            "longest_stall_s": max(stalls, default=None),
            "fleet": self._fleet.facts,
            "errors": self._errors(),
        }

    def _errors(self) -> list[str]:
        """What is wrong at this moment, each with its time."""
        self.history.hold("warning", (*self._engine.warnings, *self._lives.warnings()))
        self.history.hold("room", room.warnings(self._state))
        self.history.hold("fleet", self._fleet.troubles)
        return [str(trouble) for trouble in facts.troubles(self.history, self._lives)]

    async def follow_fleet(self) -> None:
        """This host has joined a fleet, or left it."""
        self._fleet.look_again()

    async def stop(self) -> None:
        """Stop everything, after this call has been answered."""
        asyncio.get_running_loop().call_later(0.05, self._stopping.set)

    async def hold(self, seconds: float, target: str | None = None) -> None:
        """Start no target for so long: an outage, for `nvmuser bench recovery` or for work on the host's storage.

        :param target: name of one; None: all.
        """
        for life in self._chosen(target):
            life.targets.hold(seconds)

    def _chosen(self, target: str | None) -> list[Life]:
        """:raises NotFoundError: there is no such target."""
        if target is not None and target not in self._lives:
            raise NotFoundError(f"target {target}: no such target; `nvmuser target list` shows those that there are")
        return [self._lives[target]] if target is not None else list(self._lives)

    async def stand_by(self, wanted: bool) -> None:
        """Keep standbys from now on, and after later starts; or none but those of targets that ask for their own.

        :raises TargetError: that cannot be recorded, or a standby does not start.
        """
        settings = self._settings.with_said(standby=wanted)
        try:
            await asyncio.to_thread(settings.save, self._state)
        except OSError as error:
            raise TargetError(f"{self._state.settings}: {error.strerror}; nothing was changed") from error
        self._settings = settings
        for life in self._lives:
            await life.keep_standby()

    async def restart(self, target: str | None = None, rolling: bool = False) -> int:
        """Replace a target by another process of the same SPDK, with its I/O finished first.

        :param target: name of one; None: all, one after the other.
        :param rolling: one controller at a time, while both processes live.
        :returns: how many controllers moved, where it was rolling.
        """
        return sum([await self._replace(life, life.targets.spdk, rolling) for life in self._chosen(target)])

    async def upgrade(self, prefix: str, rolling: bool = False) -> int:
        """Replace the targets by processes of the SPDK in `prefix`, now and at later starts; as `restart` does."""
        spdk = check_prefix(Path(prefix))
        moved = sum([await self._replace(life, spdk, rolling) for life in self._lives])
        try:
            choose_spdk(self._state, spdk)
            self.history.resolve("upgrade")
        except OSError as error:
            text = f"{self._state.spdk}: {error.strerror}; the next start uses another SPDK than {prefix}"
            self.history.note("upgrade", text)
        return moved

    async def _replace(self, life: Life, spdk: Spdk, rolling: bool) -> int:
        """The next process is started before the old one ends."""
        if life.targets.current is None:  # it has just ended, and the next is on its way
            await _known(life)
        if rolling:
            async with self._changing:
                moved = await life.roll(spdk)
            await life.ready.wait()
            return moved
        failure = ""
        async with self._changing:
            await life.replace(spdk)
            try:
                await asyncio.to_thread(self._engine.site(life.name).sync_files)
            except TargetError as error:
                failure = str(error)
        await life.ready.wait()
        if failure:
            raise TargetError(f"the target was replaced; what the old one wrote may not be on the disk: {failure}")
        return 0


async def _known(life: Life) -> None:
    """Wait until a target is ready, or has been refused."""
    waits = [asyncio.ensure_future(event.wait()) for event in (life.ready, life.refused)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
