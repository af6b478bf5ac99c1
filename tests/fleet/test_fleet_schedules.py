"""Random schedules of what may go wrong, over two hosts that share a remote's namespace and an image in Ceph, while
both are written to.

What must hold: no block bears an older epoch after a newer one; what was answered is there; etcd's owner is who the
storage lets in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass, field

import pytest
from fleet_storage import StorageWorld, Writer, blocks
from fleet_world import until

from nvmuser.errors import NvmuserError

VOLUMES = ("r", "i")
ACTS = ("move", "force", "kill", "stop", "cut etcd", "cut storage")
BUDGET_S = 360.0
"""Of the long run: fewer schedules are a failure of the machine, and said so."""


@dataclass
class Run:
    """A world, and everything that was ever written to a volume in it."""

    world: StorageWorld
    seen: dict[str, list[Writer]] = field(default_factory=lambda: {name: [] for name in VOLUMES})
    answered: dict[str, dict[int, tuple[int, int]]] = field(default_factory=lambda: {name: {} for name in VOLUMES})
    done: list[str] = field(default_factory=list)

    def other(self, name: str) -> str:
        return "h2" if name == "h1" else "h1"

    async def place(self, volume: str) -> str:
        return (await self.world.owner(volume)).host

    async def write(self) -> None:
        """Each owner's writer, with its epoch; the ones before go on for as long as they can."""
        for volume in VOLUMES:
            owner = await self.world.owner(volume)
            if not any(writer.epoch == owner.epoch for writer in self.seen[volume]):
                self.seen[volume].append(await self.world.hosts[owner.host].write(volume, owner.epoch))

    async def end_stale(self, volume: str, host: str) -> None:
        """Before a volume comes back to a host: who wrote there in an earlier epoch would be let in again."""
        for writer in [one for one in self.seen[volume] if one.log.name.startswith(f"{host}-")]:
            await writer.end()
            self._note(volume, writer)
            self.seen[volume].remove(writer)

    async def end_writers(self) -> None:
        for volume, writers in self.seen.items():
            for writer in writers:
                await writer.end()
                self._note(volume, writer)
            writers.clear()

    def _note(self, volume: str, writer: Writer) -> None:
        wrong = [line for line in writer.lines if line[0] == "x"]
        assert not wrong, f"{volume}, epoch {writer.epoch}: found {wrong[:3]}, after {self.done}"
        known = self.answered[volume]
        for _, block, number in (line for line in writer.lines if line[0] == "a"):
            known[int(block)] = max(known.get(int(block), (0, 0)), (writer.epoch, int(number)))

    async def forced(self, volume: str, to: str) -> None:
        """By somebody who does not know better; where it is refused, nothing has moved."""
        with contextlib.suppress(NvmuserError):
            await self.world.move(volume, to, force=True)

    async def act(self, act: str, chance: random.Random) -> None:
        """One thing that happens, and its end."""
        volume = chance.choice(VOLUMES)
        here = await self.place(volume)
        host, there = self.world.hosts[here], self.other(here)
        await self.end_stale(volume, there)
        self.done.append(f"{act} {volume} of {here}")
        if act == "move":
            with contextlib.suppress(NvmuserError):
                await self.world.move(volume, there)
        elif act == "force":
            await self.forced(volume, there)
        elif act == "kill":
            if pid := (await host.status())["target"]["pid"]:
                os.kill(pid, signal.SIGKILL)
            if chance.random() < 0.5:
                await self.forced(volume, there)
        elif act == "stop":
            host.signal(signal.SIGSTOP)
            try:
                await self.forced(volume, there)
                await self.write()
                await asyncio.sleep(chance.random() * 0.3)  # so that something is written meanwhile
            finally:
                host.signal(signal.SIGCONT)
        else:
            door = host.etcd if act == "cut etcd" else host.store
            door.cut()
            try:
                await self.forced(volume, there)
                await self.write()
                await asyncio.sleep(chance.random() * 0.3)
            finally:
                door.cut(False)

    async def check(self) -> None:
        """Everybody is back: what etcd says, what the storage says, what is in the blocks."""
        await until(lambda: self.world.live("h1", "h2"), 30)
        await until(lambda: self.world.is_settled(*VOLUMES), 60)
        await self.end_writers()
        for volume in VOLUMES:
            owner = await self.world.owner(volume)
            now = await asyncio.to_thread(blocks, self.world.hosts[owner.host], volume)
            for block, said in self.answered[volume].items():
                found = now[block]
                assert found is not None, (volume, block, self.done)
                assert found >= said, (volume, block, found, said, self.done)


async def run(world: StorageWorld, seeds: range, acts: int, budget: float) -> int:
    """Schedules one after the other. Returns how many there was time for."""
    await world.declare("h1", *world.remote("r"))
    await world.declare("h1", *world.image("i"))
    one, end = Run(world), time.monotonic() + budget
    for count, seed in enumerate(seeds):
        if time.monotonic() > end:
            return count
        chance = random.Random(seed)
        one.done = [f"seed {seed}"]
        await one.write()
        for _ in range(acts):
            await one.act(chance.choice(ACTS), chance)
            await one.write()
        try:
            await one.check()
        except TimeoutError:
            async with world.session() as session:
                view, reports = await session.view(), await session.reports()
            raise AssertionError((one.done, world.lacks, view.owners, reports)) from None
    return len(seeds)


@pytest.mark.matrix
async def test_no_block_goes_back_to_an_older_epoch(storage: StorageWorld) -> None:
    assert await run(storage, range(2), acts=2, budget=60) > 0


@pytest.mark.matrix
async def test_no_block_goes_back_to_an_older_epoch_whatever_happens(storage: StorageWorld) -> None:
    """`SEEDS=from,to` chooses others."""
    first, last = map(int, os.environ.get("SEEDS", "100,300").split(","))
    done = await run(storage, range(first, last), acts=2, budget=BUDGET_S)
    print(f"{done} schedules")
    assert done >= min(20, last - first)
