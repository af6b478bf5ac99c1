"""Random schedules of moves, deaths, sleeps and cuts, over hosts with real agents on a real etcd, and a storage in
memory that has one holder a volume: who is woken, or was never asked, writes on for as long as the storage lets it.

`test_fleet_schedules` does the same with real storage, and fewer times.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from fleet_world import ADMIN, FAR, EngineHost, FleetHost, World, controller, until

from nvmuser.errors import ConflictError, NvmuserError, TargetError
from nvmuser.fleet import agent
from nvmuser.fleet.etcd.client import Transaction
from nvmuser.fleet.fences import Fences
from nvmuser.fleet.move import move
from nvmuser.model.change import Change
from nvmuser.model.objects import Volume
from nvmuser.reconcile.outcome import Outcome

HOSTS, VOLUMES, BLOCKS = ("h1", "h2"), ("v-a", "v-b"), 4
ACTS = ("move", "force", "kill", "sleep", "cut etcd", "cut storage")


@dataclass
class Disk:
    """A volume of the storage."""

    holder: str = ""
    """Session that may write."""
    epoch: int = 0
    """Grows whenever another host than the last one is let in."""
    last: str = ""
    blocks: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Storage:
    """:param fences: without them, it lets everybody write who has opened a volume."""

    fences: bool = True
    disks: dict[str, Disk] = field(default_factory=lambda: {name: Disk() for name in VOLUMES})
    shut: set[str] = field(default_factory=set)
    """Hosts that cannot reach it."""

    def enter(self, session: str, volume: str, predecessors: Sequence[str]) -> int:
        """Open a volume exclusively. Returns the epoch of what is written from now on."""
        disk, host = self.disks[volume], session.partition("/")[0]
        if host in self.shut:
            raise TargetError("the storage does not answer")
        holder = disk.holder.partition("/")[0]
        if self.fences and holder and holder not in (host, *predecessors):
            raise ConflictError(f"held by {holder}")
        disk.holder = session
        disk.epoch += disk.last != host
        disk.last = host
        return disk.epoch

    def leave(self, session: str, volume: str) -> None:
        if self.disks[volume].holder == session:
            self.disks[volume].holder = ""

    def write(self, session: str, volume: str, block: int, epoch: int) -> bool:
        """False where it is refused."""
        disk = self.disks[volume]
        if session.partition("/")[0] in self.shut or (self.fences and disk.holder != session):
            return False
        if disk.blocks[block] > epoch:
            disk.wrong.append(f"{session} writes epoch {epoch} over {disk.blocks[block]}")
        disk.blocks[block] = epoch
        return True


class HolderFence:
    """Of one host."""

    kind = "holder"

    def __init__(self, host: str) -> None:
        self.host = host
        self.predecessors: dict[str, tuple[str, ...]] = {}

    def applies(self, volume: Volume) -> bool:
        return volume.backend == "remote"

    def choose(self, volume: Volume) -> Mapping[str, str]:
        return {"kind": self.kind, "host": self.host}

    async def shut_out(self, volume: Volume, recorded: Sequence[Mapping[str, str]], find: object) -> None:
        self.predecessors[volume.name] = tuple(one["host"] for one in recorded)

    def opened(self, volume: Volume) -> None:
        self.predecessors.pop(volume.name, None)


@dataclass
class SimHost(EngineHost):
    """A host whose target opens volumes in the storage, and writes to all that it has open."""

    storage: Storage = field(default_factory=Storage)
    fence: HolderFence = field(default_factory=lambda: HolderFence(""))
    process: int = 0
    epochs: dict[str, int] = field(default_factory=dict)
    asleep: bool = False

    @property
    def session(self) -> str:
        return f"{self.fence.host}/{self.process}"

    async def change(self, change: Change) -> Outcome:
        before = dict(self.epochs)
        try:
            for one in change.create:
                if one.kind == "volume" and one.name not in self.epochs:
                    self._enter(one.name)
            outcome = await super().change(change)
        except NvmuserError:
            for name in self.epochs.keys() - before:
                self._leave(name)
            raise
        for name in self.epochs.keys() - {one.name for one in self.desired().wanted() if one.kind == "volume"}:
            self._leave(name)
        return outcome

    def _enter(self, name: str) -> None:
        self.epochs[name] = self.storage.enter(self.session, name, self.fence.predecessors.get(name, ()))

    def _leave(self, name: str) -> None:
        del self.epochs[name]
        self.storage.leave(self.session, name)

    def killed(self) -> None:
        """Its target is killed, and another one started, which asks nobody in etcd."""
        self.process += 1
        for name in list(self.epochs):
            try:
                self._enter(name)
            except NvmuserError:
                del self.epochs[name]

    def write(self, chance: random.Random) -> None:
        """What its guests do."""
        if not self.asleep:
            for name, epoch in self.epochs.items():
                self.storage.write(self.session, name, chance.randrange(BLOCKS), epoch)


class Run:
    """One schedule after the other."""

    def __init__(self, world: World, storage: Storage) -> None:
        self.world = world
        self.storage = storage
        self.hosts: dict[str, FleetHost] = {}
        self.running: dict[str, asyncio.Task[None]] = {}
        self.done: list[str] = []

    async def begin(self) -> None:
        fences = {name: HolderFence(name) for name in HOSTS}
        self.world.fences = lambda host: Fences(fences[host])
        for name in HOSTS:
            host = await self.world.join(name, run=False)
            executor = SimHost(host.executor.state, host.executor.engine, True, [], self.storage, fences[name])
            host.executor = executor
            self.hosts[name] = host
            await self.wake(name)
        for number, name in enumerate(VOLUMES):
            volume = Volume(name, backend="remote", remote="far", remote_nsid=number + 1)
            far = () if number else (FAR,)
            await self.world.apply(Change(create=(*far, volume, controller(f"c{name[1:]}", name))), HOSTS[0])

    def sim(self, name: str) -> SimHost:
        executor = self.hosts[name].executor
        assert isinstance(executor, SimHost)
        return executor

    async def wake(self, name: str) -> None:
        self.sim(name).asleep = False
        await self.world.run(self.hosts[name])
        self.running[name] = self.world.tasks.pop()

    async def away(self, name: str) -> None:
        """Its agent does nothing any more, and its lease ends."""
        self.running[name].cancel()
        await asyncio.gather(self.running[name], return_exceptions=True)
        async with self.world.session() as one:
            await one.client.write_if(Transaction({}, (), {one.keys.live(name): None}))

    async def place(self, volume: str) -> str:
        async with self.world.session() as one:
            return next(owner.host for owner in (await one.view()).owners.values() if owner.volume == volume)

    async def moved(self, volume: str, to: str, *, force: bool) -> None:
        with contextlib.suppress(NvmuserError):
            async with self.world.session() as one:
                await move(one, f"c{volume[1:]}", to, ADMIN, force=force)

    async def act(self, chance: random.Random) -> None:
        act, volume = chance.choice(ACTS), chance.choice(VOLUMES)
        here = await self.place(volume)
        there = next(name for name in HOSTS if name != here)
        self.done.append(f"{act} {volume} of {here}")
        if act in ("move", "force"):
            await self.moved(volume, there, force=act == "force")
        elif act == "kill":
            self.sim(here).killed()
        elif act == "cut storage":
            self.storage.shut.add(here)
            await self.moved(volume, there, force=True)
            self.storage.shut.discard(here)
        else:
            self.sim(here).asleep = act == "sleep"
            await self.away(here)
            await self.moved(volume, there, force=True)
            if chance.random() < 0.5:
                self.sim(here).killed()
            await asyncio.sleep(chance.random() * 0.02)  # the new owner writes
            self.sim(here).asleep = False
            await asyncio.sleep(0.005)  # it writes before it learns anything
            await self.wake(here)

    async def is_settled(self) -> bool:
        """The owner has it open and nobody else, in etcd's words and in the storage's."""
        async with self.world.session() as one:
            owners = {owner.volume: owner for owner in (await one.view()).owners.values()}
        for volume in VOLUMES:
            has = [name for name in HOSTS if f"volume/{volume}" in self.hosts[name].names]
            holder = self.storage.disks[volume].holder.partition("/")[0]
            if (owners[volume].state, has, holder) != ("open", [owners[volume].host], owners[volume].host):
                return False
        return True

    async def schedules(self, seeds: range, acts: int = 3) -> None:
        chance = random.Random(seeds.start)

        async def write() -> None:
            while True:
                for name in HOSTS:
                    self.sim(name).write(chance)
                await asyncio.sleep(0.001)  # as a guest does

        writing = asyncio.create_task(write())
        try:
            for seed in seeds:
                self.done = [f"seed {seed}"]
                for _ in range(acts):
                    await self.act(random.Random(seed * 1000 + len(self.done)))
                await self.check()
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def check(self) -> None:
        try:
            await until(self.is_settled, 20)
        except TimeoutError:
            if self.storage.fences:
                async with self.world.session() as one:
                    view, reports = await one.view(), await one.reports()
                troubles = [host.agent.trouble for host in self.hosts.values()]
                there = [host.names for host in self.hosts.values()]
                objects = {str(key): (record.host, record.seize) for key, record in view.objects.items()}
                found = (self.done, self.storage, there, view.owners, objects, reports, troubles)
                raise AssertionError(found) from None
        for disk in self.storage.disks.values():
            assert not disk.wrong, (self.done, disk.wrong[:3])


async def run(world: World, seeds: range, monkeypatch: pytest.MonkeyPatch, *, fences: bool = True) -> None:
    monkeypatch.setattr(agent, "_AGAIN_S", 0.1)
    one = Run(world, Storage(fences))
    await one.begin()
    try:
        await one.schedules(seeds)
    finally:
        for task in one.running.values():
            task.cancel()
        await asyncio.gather(*one.running.values(), return_exceptions=True)


async def test_no_block_goes_back_to_an_older_epoch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await run(world, range(6), monkeypatch)


async def test_without_fences_some_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests would say."""
    with pytest.raises(AssertionError, match=r"writes epoch \d+ over \d+"):
        await run(world, range(40), monkeypatch, fences=False)


@pytest.mark.matrix
async def test_no_block_goes_back_in_many_schedules(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await run(world, range(1000, 1200), monkeypatch)
