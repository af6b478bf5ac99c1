"""A reader and the load beside it: two connected controllers, driven by one loop on one CPU.

Owns the loop's thread, and what is made of its counters. Two processes that poll would compete for a CPU, and what one
of them lost would look like the target's doing. Nothing in the loop waits: each command is submitted, and each load is
asked for one completion in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from nvmuser import initiator
from nvmuser.initiator.commands import Opcode

Act = Callable[[], Awaitable[None]]
"""What happens while the reader is measured."""

READ_BYTES = 4096
_WARMUP_S = 0.2
_SLICE_S = 0.02
"""How long the loop runs before it looks whether the time is over."""


@dataclass(frozen=True)
class Work:
    """What the neighbour's client does without a pause.

    :param namespace: its number at the neighbour's controller.
    :param then: the command after each write, for the same blocks.
    """

    namespace: int
    pattern: str = "randwrite"
    depth: int = 4
    size: int = 4096
    then: Opcode | None = None


@dataclass(frozen=True)
class Seen:
    """What the reader saw, in microseconds, and what was done beside it.

    :param commands: those of the neighbour that count: what follows its writes, else all.
    :param iops: over the time in which the loop had a CPU: what it waited for one is no doing of the target's.
    :param act_s: seconds that the act took; None: there was none.
    :param client_waited: the share of the time in which the loop waited for a CPU.
    :param target_waited: the share of it in which the target did.
    """

    iops: float
    p99_9_us: float
    max_us: float
    commands: int
    act_s: float | None
    client_waited: float
    target_waited: float


class Clients:
    """The two controllers.

    :param cpu: where their loop runs.
    :param reactor: the thread of the target that polls.
    """

    def __init__(self, reader: initiator.Controller, neighbour: initiator.Controller, cpu: int, reactor: int) -> None:
        self._reader = reader
        self._neighbour = neighbour
        self._cpu = cpu
        self._reactor = reactor

    async def measure(self, work: Work | None, seconds: float, act: Act | None = None, seed: int = 0) -> Seen:
        """Read at depth 1 for so many seconds, and for as long as the act takes.

        :param seed: of the neighbour's random places.
        :raises HostConnectionError: the target went away.
        """
        with contextlib.ExitStack() as stack:
            reader = initiator.Load(self._reader, self._reader.namespace(1), depth=1, size=READ_BYTES)
            loads = [stack.enter_context(reader)]
            if work is not None:
                loads.append(stack.enter_context(self._load(work, seed)))
            loop = _Loop(loads, self._cpu, self._reactor)
            took = await loop.around(seconds, act)
            read, other = reader.result(), loads[-1].result()
        commands = 0 if work is None else other.followed if work.then is not None else other.ios
        had = read.seconds - loop.client_s
        waited = (loop.client_s / read.seconds, loop.target_s / read.seconds)
        return Seen(read.ios / had, read.percentile(99.9), read.max_us, commands, took, *waited)

    def _load(self, work: Work, seed: int) -> initiator.Load:
        namespace = self._neighbour.namespace(work.namespace)
        return initiator.Load(
            self._neighbour, namespace,
            pattern=work.pattern, depth=work.depth, size=work.size, then=work.then, seed=2 * seed + 3,
        )  # fmt: skip


class _Loop:
    """The thread in which loads run. `client_s` and `target_s` are how long it and the target waited for a CPU."""

    def __init__(self, loads: Sequence[initiator.Load], cpu: int, reactor: int) -> None:
        self._loads = loads
        self._cpu = cpu
        self._reactor = reactor
        self._warm = asyncio.Event()
        self._enough = threading.Event()
        self.client_s = self.target_s = 0.0

    async def around(self, seconds: float, act: Act | None) -> float | None:
        """Run the loads around an act; return the seconds that it took."""
        running = asyncio.create_task(asyncio.to_thread(self._run, asyncio.get_running_loop()))
        try:
            await self._warm.wait()
            _, took = await asyncio.gather(asyncio.sleep(seconds), _timed(act))
            return took
        finally:
            self._enough.set()
            await running

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._cpu})
        try:
            initiator.run(self._loads, _WARMUP_S)
            for load in self._loads:
                load.reset()
            client, target = _waited_s("thread-self"), _waited_s(self._reactor)
            loop.call_soon_threadsafe(self._warm.set)
            while not self._enough.is_set():
                initiator.run(self._loads, _SLICE_S)
            self.client_s = _waited_s("thread-self") - client
            self.target_s = _waited_s(self._reactor) - target
            # Only now: a namespace that has come would be asked for what it is, and the reader would wait for that.
            for load in self._loads:
                load.controller.poll()
        finally:
            os.sched_setaffinity(0, allowed)
            loop.call_soon_threadsafe(self._warm.set)


async def _timed(act: Act | None) -> float | None:
    if act is None:
        return None
    began = time.monotonic()
    await act()
    return time.monotonic() - began


def _waited_s(thread: str | int) -> float:
    """How long a thread has waited for a CPU so far (Linux, Documentation/scheduler/sched-stats.rst); 0: unknown."""
    try:
        with open(f"/proc/{thread}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0
