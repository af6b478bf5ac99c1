"""How long clients wait when their target is killed, and how that grows with their number.

Owns a deployment with a standby, a file volume and a client for each controller. Clients are `scale_driver`'s: they
are connected to the endpoint as guests are, write, read back what they have written, and are recovered as guests are.
All of them run in this one loop, so that what a client costs itself is as little as can be. A stall is the longest that
one command took.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.scenarios.scale_driver import BLOCK, FLUSH, READ, WRITE, Driver
from nvmuser.errors import HostError, TargetError, summary
from nvmuser.model.change import Change
from nvmuser.model.objects import AnyObject, Controller, Namespace, Volume
from nvmuser.supervisor import control

_BLOCKS = 64
_PAUSE_S = 0.02
"""Between two writes of a client: with none, a hundred clients would use all of the machine for themselves."""
_FLUSH_EACH = 8
_BEFORE_S = (0.3, 0.6)
"""Of undisturbed work before a kill, at random."""
_DEADLINE_S = 120.0
_LOOK_S = 0.02


async def measure(root: Path, count: int, rounds: int, progress: Progress) -> dict[str, Any]:
    """The stalls of `count` clients over `rounds` kills.

    :raises HostError: a command failed, or a block is wrong.
    :raises TargetError: the target or the endpoint does not do what is asked.
    """
    stalls: list[float] = []
    async with Deployment.start(root / "s", standby=True) as deployment, _clients(deployment, count) as clients:
        for number in range(rounds):
            progress.step(f"recovery, {count} clients, kill {number + 1} of {rounds}")
            target = await deployment.standby()
            stalls += await _killed(target, clients)
    return {"stall_s": {"median": statistics.median(stalls), "max": max(stalls)}, "kills": rounds}


class _Client:
    """Writes, and checks what it has written."""

    def __init__(self, number: int, driver: Driver) -> None:
        self.driver = driver
        self.longest = 0.0
        self.commands = 0
        self._number = number
        self._choose = random.Random(number)

    async def work(self) -> None:
        """For ever.

        :raises HostError: a command failed, or a block is wrong.
        """
        while True:
            self.commands += 1
            lba = self._choose.randrange(_BLOCKS)
            text = f"client {self._number} block {lba} write {self.commands}; ".encode()
            content = (text * (BLOCK // len(text) + 1))[:BLOCK]
            self.driver.store(0, content)
            await self._timed(WRITE, 0, lba)
            if self.commands % _FLUSH_EACH == 0:
                await self._timed(FLUSH, 0, 0)
            await self._timed(READ, 1, lba)
            if self.driver.load(1) != content:
                raise HostError(f"client {self._number}: block {lba} is not what was written")
            await asyncio.sleep(_PAUSE_S)

    async def _timed(self, opcode: int, slot: int, lba: int) -> None:
        began = time.monotonic()
        if status := await self.driver.command(opcode, slot, lba):
            raise HostError(f"client {self._number}: opcode {opcode} ended with status {status:#x}")
        self.longest = max(self.longest, time.monotonic() - began)


def _objects(count: int) -> tuple[AnyObject, ...]:
    volumes = [Volume(f"r{number}", size=_BLOCKS * BLOCK, block_size=BLOCK) for number in range(count)]
    return (*volumes, *(Controller(volume.name, (Namespace(volume.name),)) for volume in volumes))


@contextlib.asynccontextmanager
async def _clients(deployment: Deployment, count: int) -> AsyncIterator[list[_Client]]:
    """Connected and at work; an error of one of them ends the block with that error."""
    outcome = await control.submit(deployment.state, Change(create=_objects(count)))
    if outcome.problems or outcome.pending:
        raise TargetError(summary(outcome.problems) or "the target has ended meanwhile")
    clients = [_Client(number, Driver(deployment.state.socket(f"r{number}"))) for number in range(count)]
    try:
        async with asyncio.TaskGroup() as tasks:
            await asyncio.gather(*(client.driver.start() for client in clients))
            working = [tasks.create_task(client.work()) for client in clients]
            yield clients
            for task in working:
                task.cancel()
    except* HostError as errors:
        raise errors.exceptions[0] from None
    finally:
        for client in clients:
            client.driver.close()


async def _killed(target: int, clients: Sequence[_Client]) -> list[float]:
    """Kill the target. Returns each client's longest command, from some undisturbed ones on until all have served."""
    for client in clients:
        client.longest = 0.0
    await asyncio.sleep(random.uniform(*_BEFORE_S))
    resets = {client: client.driver.resets for client in clients}
    os.kill(target, signal.SIGKILL)
    try:
        async with asyncio.timeout(_DEADLINE_S):
            while any(client.driver.resets == before for client, before in resets.items()):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
            commands = {client: client.commands for client in clients}
            while any(client.commands < before + 2 for client, before in commands.items()):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        left = sum(client.driver.resets == before for client, before in resets.items())
        raise TargetError(f"{left} of {len(clients)} clients were not woken within {_DEADLINE_S:g} s") from None
    return [client.longest for client in clients]
