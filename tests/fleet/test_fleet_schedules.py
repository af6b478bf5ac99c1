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
from dataclasses import dataclass, field

import pytest
from fleet_storage import StorageWorld, Writer, blocks
from fleet_world import until
from fleet_writer import BLOCKS

from nvmuser.errors import NvmuserError

VOLUMES = ("r", "i")
ACTS = ("move", "force", "kill", "stop", "cut etcd", "cut storage")
PARTS, EACH = 5, 40
"""Worlds, and schedules in each, one after the other: some 5 s each on two cores."""


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

    async def written(self, volume: str, host: str) -> None:
        """Wait until a host has written much of a volume, if it has it: who had it before is woken then."""
        owner = await self.world.owner(volume)
        if owner.host == host:
            writer = next(one for one in self.seen[volume] if one.epoch == owner.epoch)
            await until(lambda: writer.answered > BLOCKS, 60)

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
                await self.written(volume, there)
            finally:
                host.signal(signal.SIGCONT)
        else:
            door = host.etcd if act == "cut etcd" else host.store
            door.cut()
            try:
                await self.forced(volume, there)
                await self.write()
                await self.written(volume, there)
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


async def run(world: StorageWorld, seeds: range) -> None:
    """Schedules one after the other, each of two things that happen."""
    await world.declare("h1", *world.remote("r"))
    await world.declare("h1", *world.image("i"))
    one = Run(world)
    for seed in seeds:
        chance = random.Random(seed)
        one.done = [f"seed {seed}"]
        await one.write()
        for _ in range(2):
            await one.act(chance.choice(ACTS), chance)
            await one.write()
        try:
            await one.check()
        except TimeoutError:
            async with world.session() as session:
                view, reports = await session.view(), await session.reports()
            raise AssertionError((one.done, world.lacks, view.owners, reports)) from None


@pytest.mark.matrix
@pytest.mark.parametrize("part", range(PARTS))
async def test_no_block_goes_back_to_an_older_epoch(storage: StorageWorld, part: int) -> None:
    """`SEED=…` begins with another one."""
    first = int(os.environ.get("SEED", "100")) + part * EACH
    await run(storage, range(first, first + EACH))
