"""The targets of one supervisor: a life for each that is wanted, begun before anything is on it, ended after.

Owns which there are, how each is to be run, and what guests are told when a controller goes from one to another.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from nvmuser.errors import NvmuserError, TargetError
from nvmuser.model import cores
from nvmuser.model.change import Change
from nvmuser.model.objects import TargetSettings
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor.endpoint import check_several
from nvmuser.supervisor.history import History
from nvmuser.supervisor.life import Life, Ways
from nvmuser.supervisor.rolling import processes
from nvmuser.supervisor.settings import Settings
from nvmuser.supervisor.spdk import Options, end_others
from nvmuser.supervisor.targets import Targets
from nvmuser.toolchain import Spdk

Watch = Callable[[Life], asyncio.Task[None]]


class Lives:
    """By name; the default target's is always there.

    :param options: what holds for all of them.
    """

    def __init__(self, state: StateDir, spdk: Spdk, options: Options, settings: Settings, ways: Ways) -> None:
        self._state = state
        self._spdk = spdk
        self._options = options
        self._settings = settings
        self._ways = ways
        self._declared: dict[str, TargetSettings] = {}
        """Those that are begun, and not recorded yet."""
        self._lives: dict[str, Life] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        for name in self._names():
            self._make(name)

    def __iter__(self) -> Iterator[Life]:
        return iter(list(self._lives.values()))

    def __getitem__(self, name: str) -> Life:
        return self._lives[name]

    def __contains__(self, name: object) -> bool:
        return name in self._lives

    @property
    def default(self) -> Life:
        return self._lives[DEFAULT_TARGET]

    def _names(self) -> list[str]:
        declared = [target.name for target in self._ways.engine.desired().targets()]
        return list(dict.fromkeys((DEFAULT_TARGET, *declared)))

    def _make(self, name: str) -> Life:
        history = History()
        spdk = self.default.targets.spdk if self._lives else self._spdk
        targets = Targets(self._state, spdk, history, self._settings.limits, lambda: self._wanted(name), name=name)
        self._lives[name] = Life(name, self._ways, targets, history)
        return self._lives[name]

    # -- how they are run ------------------------------------------------------------------------------------

    def _all_settings(self) -> list[TargetSettings]:
        desired = self._ways.engine.desired()
        known = {one.name: one for one in (desired.target(), *desired.targets(), *self._declared.values())}
        return list(known.values())

    def _wanted(self, name: str) -> Options:
        """How the next process of a target is to be run."""
        settings = self._all_settings()
        said = next((one for one in settings if one.name == name), TargetSettings(name))
        return replace(
            self._options,
            profile=said.profile,
            cores=cores.assigned(settings, os.sched_getaffinity(0))[name] if said in settings else said.cores,
            max_controllers=said.max_controllers,
            memory_mib=said.memory >> 20,
            rbd=bool(self._ways.engine.desired().clusters()),
        )

    def standby_of(self, name: str) -> bool:
        """Whether a target's own settings ask for a standby."""
        return any(one.standby for one in self._all_settings() if one.name == name)

    def warnings(self) -> list[str]:
        """What is less good than it could be."""
        return cores.shared(self._all_settings(), os.sched_getaffinity(0))

    # -- from one supervisor to the next ------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Take over every process that an earlier supervisor has left, and tell the guests of others that theirs is
        gone. What was on its way from one to another goes on from where it is."""
        await end_others(self._state, set(self._lives))
        await asyncio.gather(*(life.adopt() for life in self))
        engine = self._ways.engine
        adopted = [life for life in self if life.targets.current]
        looked = await asyncio.gather(*(engine.site(life.name).look() for life in adopted), return_exceptions=True)
        for life, failure in zip(adopted, looked, strict=True):
            if isinstance(failure, NvmuserError):
                # It hangs; what is in it cannot go on anywhere before it has ended.
                await life.kill()
                await life.targets.end()
                engine.site(life.name).lost()
        for life in self:
            if life.targets.current and not self._ways.endpoint.several:
                continue  # what is said of some, an older endpoint takes for all
            here = {key.name for key in engine.site(life.name).present if key.kind == "controller"}
            elsewhere = {key.name for other in self for key in engine.site(other.name).strays}
            lost = set(engine.controllers(life.name)) - here - elsewhere
            for state in ("gone", "drained"):
                self._ways.endpoint.target(state, lost)

    async def end(self) -> None:
        """Stop all of them, in good order."""
        await asyncio.gather(*(life.end() for life in self))

    def watch(self, start: Watch, names: Collection[str] | None = None) -> list[asyncio.Task[None]]:
        """Begin to look after them.

        :param names: of some; None: all.
        """
        for life in self:
            if life.name not in self._tasks and (names is None or life.name in names):
                self._tasks[life.name] = start(life)
        return list(self._tasks.values())

    # -- targets that come and go --------------------------------------------------------------------------------

    async def begin(self, change: Change) -> list[Life]:
        """Start the targets that a change declares, before it is carried out.

        :raises NvmuserError: one does not start; none is left.
        """
        new = [one for one in change.create if isinstance(one, TargetSettings) and one.name not in self]
        if not new:
            return []
        check_several(self._ways.endpoint)
        await asyncio.to_thread(self._ways.engine.check, change)
        self._declared |= {one.name: one for one in new}
        begun = [self._make(one.name) for one in new]
        try:
            for life in begun:
                await life.begin()
        except (NvmuserError, OSError) as error:
            await self.give_up(begun)
            raise TargetError(f"target {life.name}: {error}") from error
        return begun

    async def give_up(self, begun: Collection[Life]) -> None:
        """End targets that were begun for a change that came to nothing."""
        for life in begun:
            await self._drop(life)

    def recorded(self, begun: Collection[Life]) -> None:
        """The change is recorded: what it says holds from now on."""
        for life in begun:
            self._declared.pop(life.name, None)

    async def drop_gone(self) -> bool:
        """End the targets that are wanted no more. Whether there was one."""
        gone = [life for life in self if life.name not in self._names()]
        for life in gone:
            await self._drop(life)
        return bool(gone)

    async def _drop(self, life: Life) -> None:
        if task := self._tasks.pop(life.name, None):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await life.end()
        self._ways.engine.drop_site(life.name)
        self._declared.pop(life.name, None)
        del self._lives[life.name]

    # -- controllers that go from one to another (`nvmuser.reconcile.transit`) -----------------------------------

    async def leaving(self, controllers: Collection[str], same: Collection[str]) -> None:
        await self._ways.endpoint.leave(same)
        self._ways.endpoint.target("gone", controllers)

    def left(self, controllers: Collection[str]) -> None:
        self._ways.endpoint.target("drained", controllers)

    async def end_one(self, name: str, rpc: Client) -> bool:
        """End the process that does not let go; the next one is started."""
        for life in self:
            for target in processes(life):
                if target.rpc is rpc:
                    await target.process.kill()
        return True
