"""What happens on the target while a reader is measured: a namespace attached, a snapshot made, a guest killed …

Owns one deployment with everything that these need, and the process that is killed. Each act is prepared before it is
measured and tidied up afterwards, outside of what is measured. All go through the control plane, as a person's would.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.disks import fill
from nvmuser.bench.scenarios import neighbour_guest
from nvmuser.bench.scenarios.neighbour_clients import Act
from nvmuser.errors import GuestError, TargetError, summary
from nvmuser.model import change as changes
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Namespace, Pool, Volume
from nvmuser.supervisor import control
from nvmuser.supervisor.spdk import Options

READER, NEIGHBOUR, GUEST = "reader", "neighbour", "guest"
"""Controllers."""
WRITTEN, DISCARDED, ZEROED, POOLED, FILLED = range(1, 6)
"""Namespaces of the neighbour's. What is discarded leaves holes: each has a volume of its own."""

_MIB = 1 << 20
_FILES = {READER: 256 * _MIB, "written": 64 * _MIB, "discarded": 64 * _MIB, "zeroed": 64 * _MIB, GUEST: 16 * _MIB}
_IN_MEMORY = (READER, "written")
_MEMORY_BYTES = 24 * _MIB
"""A target without hugepages has room for two of these."""
_POOL_BYTES = 512 * _MIB
_POOLED_BYTES = 64 * _MIB
_SPARE_BYTES = 16 * _MIB
_FILLED_BYTES = 4096 * _MIB
"""Of which most is never written."""
_LIMIT_S = 60.0


class World:
    """A deployment with volumes in files: controllers of a reader, of its neighbour, and of a guest that is killed."""

    def __init__(self, deployment: Deployment, files: Path, memory: bool) -> None:
        self._deployment = deployment
        self._files = files
        self._memory = memory
        self._guest: _Guest | None = None

    @classmethod
    @asynccontextmanager
    async def start(cls, root: Path, files: Path, core: int, *, memory: bool = False) -> AsyncIterator[Self]:
        """:param root: a short path, for sockets are in it.

        :param files: where the volumes' files go; on a file system with direct I/O.
        :param core: the target's.
        :param memory: the reader's volume, and the one that is written, are no files.
        :raises NvmuserError: the target does not start, or there is no room for the files.
        """
        for name, size in _FILES.items():
            await asyncio.to_thread(fill, files / name, size)
        async with Deployment.start(root / "s", Options(cores=(core,))) as deployment:
            world = cls(deployment, files, memory)
            await world._change(Change(create=world._objects()))
            try:
                yield world
            finally:
                await world._end_guest()

    def directory(self, controller: str) -> Path:
        """Where the controller's own socket is: without the endpoint, which a host does not need."""
        return self._deployment.state.target_dir(controller)

    async def reactor(self) -> int:
        """The thread of the target that polls, by its number (lib/event/reactor.c names it so).

        :raises TargetError: there is no target at this moment.
        """
        [pid] = (await self._deployment.processes())["target"]
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if (thread / "comm").read_text().startswith("reactor_"):
                return int(thread.name)
        raise TargetError("the target has no reactor")

    def _objects(self) -> tuple[AnyObject, ...]:
        volumes = [self._volume(name) for name in _FILES]
        pool = (
            Volume("base", path=str(self._files / "base"), size=_POOL_BYTES),
            Pool("pool", base="base"),
            Volume("pooled", "lvol", pool="pool", size=_POOLED_BYTES),
        )
        beside = (Namespace("written", WRITTEN), Namespace("discarded", DISCARDED), Namespace("zeroed", ZEROED))
        controllers = (
            Controller(READER, (Namespace(READER),), volatile=self._memory),
            Controller(
                NEIGHBOUR, (*beside, Namespace("pooled", POOLED), Namespace("filled", FILLED)), volatile=self._memory
            ),
            Controller(GUEST, (Namespace(GUEST),)),
        )
        return (*volumes, *pool, self._spare("spare"), self._spare("filled", _FILLED_BYTES), *controllers)

    def _volume(self, name: str) -> Volume:
        if self._memory and name in _IN_MEMORY:
            return Volume(name, "malloc", size=_MEMORY_BYTES, volatile=True)
        return Volume(name, path=str(self._files / name))

    def _spare(self, name: str, size: int = _SPARE_BYTES) -> Volume:
        return Volume(name, path=str(self._files / name), size=size)

    @asynccontextmanager
    async def attach(self, _number: int) -> AsyncIterator[Act]:
        """A namespace of the neighbour's, attached and detached."""
        state = self._deployment.state

        def neighbour() -> Controller:
            return control.load(state).controller(NEIGHBOUR)

        async def act() -> None:
            await self._change(Change(update=(changes.attach(neighbour(), "spare"),)))
            await self._change(Change(update=(changes.detach(neighbour(), "spare"),), force=True))

        yield act

    @asynccontextmanager
    async def snapshot(self, number: int) -> AsyncIterator[Act]:
        """A snapshot of the volume that the neighbour writes."""
        name = f"snapshot{number}"

        async def act() -> None:
            await self._change(Change(create=(Volume(name, "lvol", pool="pool", snapshot_of="pooled"),)))

        yield act
        await self._change(Change(delete=(Key("volume", name),), wipe=True))

    @asynccontextmanager
    async def create(self, number: int) -> AsyncIterator[Act]:
        """A controller with a volume in a new file."""
        name = f"new{number}"

        async def act() -> None:
            await self._change(Change(create=(self._spare(name), Controller(name, (Namespace(name),)))))

        yield act
        await self._change(Change(delete=(Key("controller", name), Key("volume", name)), wipe=True))

    @asynccontextmanager
    async def recover(self, _number: int) -> AsyncIterator[Act]:
        """A guest's process killed while its writes are in flight, and another in its place."""
        directory = self._deployment.state.guest_dir(GUEST)
        if self._guest is None:
            self._guest = await _Guest.start(directory)
            await self._guest.connect()
        dying, successor = self._guest, await _Guest.start(directory)
        self._guest = successor

        async def act() -> None:
            await dying.die()
            await successor.connect()

        try:
            yield act
        finally:
            await dying.end()

    async def _end_guest(self) -> None:
        if self._guest is not None:
            await self._guest.end()

    async def _change(self, change: Change) -> None:
        outcome = await control.submit(self._deployment.state, change)
        if outcome.pending or outcome.problems:
            raise TargetError(summary(outcome.problems) or "the target has ended during the measurement")


class _Guest:
    """The process of `neighbour_guest`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, directory: Path) -> Self:
        """Start one, up to where it would connect: a start of Python and DPDK is nothing that the target sees."""
        argv = [sys.executable, "-m", neighbour_guest.__name__, str(directory)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe)
        guest = cls(process)
        try:
            await guest._answer(neighbour_guest.READY)
        except BaseException:
            await guest.end()
            raise
        return guest

    async def connect(self) -> None:
        """:raises GuestError: it is not served."""
        self._ask(neighbour_guest.CONNECT)
        await self._answer(neighbour_guest.CONNECT)

    async def die(self) -> None:
        """:raises GuestError: it does not end."""
        self._ask(neighbour_guest.DIE)
        async with _limited():
            await self._process.wait()

    async def end(self) -> None:
        """Kill it, if it is there. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.communicate()

    def _ask(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

    async def _answer(self, word: str) -> None:
        assert self._process.stdout is not None
        async with _limited():
            line = await self._process.stdout.readline()
            if line.decode().strip() != word:
                _, errors = await self._process.communicate()
                raise GuestError(errors.decode(errors="replace").strip() or "the client that is killed gave no answer")


@asynccontextmanager
async def _limited() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_LIMIT_S):
            yield
    except TimeoutError:
        raise GuestError(f"the client that is killed: no answer within {_LIMIT_S:g} s") from None
