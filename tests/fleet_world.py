"""Hosts of a fleet without SPDK: a state directory each, with a real store, a real engine and a real agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nvmuser.errors import TargetError
from nvmuser.fleet import membership
from nvmuser.fleet.agent import Agent
from nvmuser.fleet.etcd.client import Client
from nvmuser.fleet.fences import Fences
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.progress import Progress
from nvmuser.fleet.session import Session, opened, session
from nvmuser.fleet.settings import FleetSettings
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.store.events import Actor

ADMIN = Actor("user admin", "a test")


@dataclass
class EngineHost:
    """The engine of a host, as an agent asks it."""

    state: StateDir
    engine: Engine
    serves: bool = False
    """As if a target ran."""
    changes: list[Change] = field(default_factory=list)

    def desired(self) -> Desired:
        return self.engine.desired()

    async def change(self, change: Change) -> Outcome:
        self.changes.append(change)
        outcome = await self.engine.change(change)
        return replace(outcome, pending=outcome.pending and not self.serves)

    def problems(self) -> Mapping[Key, str]:
        return {}

    def progress(self) -> Progress:
        return Progress.load(self.state)

    def keep(self, progress: Progress) -> None:
        progress.save(self.state)


@dataclass
class FleetHost:
    """A host that has joined, with its agent."""

    settings: FleetSettings
    executor: EngineHost
    agent: Agent

    @property
    def names(self) -> set[str]:
        """Of what its own store has."""
        return {str(one.key) for one in self.executor.desired().wanted()}


@dataclass
class World:
    """A fleet on one etcd."""

    url: str
    directory: Path
    name: str = "test"
    fences: Callable[[str], Fences] = lambda host: Fences()
    """Of each host."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def settings(self, host: str = "") -> FleetSettings:
        return FleetSettings(self.name, host, tuple(self.url.split(",")))

    async def begin(self) -> None:
        async with opened(self.settings()) as client:
            await membership.init(client, FleetKeys(self.name))

    def engine(self, host: str) -> Engine:
        state = StateDir(self.directory / host)
        state.root.mkdir(exist_ok=True)
        return Engine(state)

    async def join(self, host: str, *, adopt: bool = False, run: bool = True) -> FleetHost:
        """Become a host, and follow the fleet."""
        settings, state, engine = self.settings(host), StateDir(self.directory / host), self.engine(host)
        progress, _ = await membership.join(settings, f"id-{host}", engine.desired(), ADMIN, adopt=adopt)
        progress.save(state)
        executor = EngineHost(state, engine)
        one = FleetHost(settings, executor, Agent(settings, executor, self.fences(host)))
        if run:
            await self.run(one)
        return one

    async def run(self, host: FleetHost) -> None:
        """Start its agent, and wait until others see it."""
        host.agent = Agent(host.settings, host.executor, self.fences(host.settings.host))
        self.tasks.append(asyncio.create_task(host.agent.run()))
        async with self.session() as one:
            await until(lambda: is_live(one, host.settings.host))

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def session(self, host: str = "") -> contextlib.AbstractAsyncContextManager[Session]:
        return session(self.settings(host))

    async def apply(self, change: Change, default: str = "", **more: object) -> Outcome:
        """As an admin does."""
        async with asyncio.timeout(20), self.session() as one:
            return await one.change(change, ADMIN, more.get("wheres", {}), default)  # type: ignore[arg-type]


async def is_live(one: Session, host: str) -> bool:
    return host in (await one.view()).live


async def until(condition: object, deadline: float = 10.0) -> None:
    """Wait for a condition, which may be asynchronous. Fails when it does not come."""
    async with asyncio.timeout(deadline):
        while True:
            found = condition()  # type: ignore[operator]
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def a_world(url: str, directory: Path, name: str) -> AsyncIterator[World]:
    """A fleet of its own."""
    world = World(url, directory, name)
    await world.begin()
    try:
        yield world
    finally:
        await world.end()


def disk(name: str, size: int = 1 << 20) -> Volume:
    return Volume(name, size=size)


def controller(name: str, *volumes: str) -> Controller:
    return Controller(name, tuple(Namespace(volume) for volume in volumes))


def pair(name: str) -> Change:
    """A controller with one volume."""
    return Change(create=(disk(f"v-{name}"), controller(f"c-{name}", f"v-{name}")))


async def value(client: Client, key: str) -> bytes | None:
    found = await client.get(key)
    return found.value if found else None


class Wall:
    """A host's fence, which says what it was asked."""

    kind = "wall"

    def __init__(self, host: str) -> None:
        self.host = host
        self.fails = ""
        self.confirmed: list[str] = []

    def applies(self, volume: Volume) -> bool:
        return volume.backend == "remote"

    def choose(self, volume: Volume) -> Mapping[str, str]:
        return {"kind": self.kind, "host": self.host, "key": f"{self.host} in {volume.name}"}

    async def shut_out(self, volume: Volume, recorded: Sequence[Mapping[str, str]], find: object) -> None:
        if self.fails:
            raise TargetError(self.fails)
        self.confirmed += [one["key"] for one in recorded]

    def opened(self, volume: Volume) -> None:
        """Nothing is kept for it."""


FAR = Remote("far", nqn="nqn.2026-11.org.example:far", paths=(RemotePath("192.0.2.1", 4420),))


def on_far(name: str, nsid: int = 1) -> Change:
    volume = Volume(f"v-{name}", backend="remote", remote="far", remote_nsid=nsid)
    return Change(create=(FAR, volume, controller(f"c-{name}", f"v-{name}")))
