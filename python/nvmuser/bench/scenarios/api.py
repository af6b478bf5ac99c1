"""How fast the API is beside many volumes: changes of many clients at once, reads, scrapes, watchers.

Owns the deployment and the API's process. Nothing else of this machine is measured: the target polls one of its cores
meanwhile, as it does in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.scenarios.api_client import ApiClient
from nvmuser.errors import TargetError
from nvmuser.model.change import Change
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

_SIZE = 1 << 20
_SCRAPES = 5
_READERS = 4
_CLI = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


@dataclass(frozen=True)
class Result:
    """:param change_p50_ms: of one change, as its client sees it; so the others.
    :param read_p99_ms: of one volume, by four clients at once, while nothing changes.
    :param read_beside_changes_p99_ms: the same by one client while the others change something.
    :param scrape_s: median of five, of everything that there is.
    :param watchers_behind_ms: when the last of all watchers had the last of the events, after the change was answered.
    """

    volumes: int
    clients: int
    changes_per_s: float
    change_p50_ms: float
    change_p99_ms: float
    read_p50_ms: float
    read_p99_ms: float
    read_beside_changes_p99_ms: float
    scrape_s: float
    scrape_bytes: int
    watchers: int
    watchers_behind_ms: float

    def to_json(self) -> dict[str, Any]:
        """All fields by their names."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


async def measure(root: Path, volumes: int, clients: int, watchers: int, seconds: float, progress: Progress) -> Result:
    """Measure all of it.

    :param root: a short path, for sockets are in it; its owner removes it.
    :raises NvmuserError: the target or the API does not do what is asked.
    """
    async with Deployment.start(root / "s") as deployment:
        state = deployment.state
        progress.step(f"{volumes} volumes")
        await control.submit(state, Change(create=tuple(_volume(f"v{number}") for number in range(volumes))))
        async with _serving(state):
            progress.step("reads")
            reads = await _all(state, _READERS, seconds, _reading(volumes))
            progress.step("changes")
            beside: list[float] = []
            changes, beside = await asyncio.gather(
                _all(state, clients, seconds, _changing), _all(state, 1, seconds, _reading(volumes))
            )
            progress.step("scrapes")
            scrapes, size = await _scrapes(state)
            progress.step("watchers")
            behind = await _watchers(state, watchers)
    return Result(
        volumes,
        clients,
        len(changes) / seconds,
        _percentile(changes, 50),
        _percentile(changes, 99),
        _percentile(reads, 50),
        _percentile(reads, 99),
        _percentile(beside, 99),
        statistics.median(scrapes),
        size,
        watchers,
        behind * 1000,
    )


def _volume(name: str) -> Volume:
    return Volume(name, "null", size=_SIZE, volatile=True)


def _percentile(seconds: list[float], percent: int) -> float:
    """In milliseconds."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000


@contextlib.asynccontextmanager
async def _serving(state: StateDir) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *_CLI, "--state-dir", str(state.root), "api", "serve", "--rate", "1000000", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        if not await process.stdout.readline():
            raise TargetError("the API does not start")
        async with ApiClient(state.api_socket) as client:
            await client.request("GET", "/healthz")
        yield
    finally:
        process.terminate()
        await process.wait()


_Work = Callable[[ApiClient, int, int], Awaitable[int]]
"""By a client, its number, and which time; returns how many requests that were."""


async def _all(state: StateDir, clients: int, seconds: float, work: _Work) -> list[float]:
    """What so many clients do for so long, each one after the other: how long each request took."""
    end, took = time.monotonic() + seconds, list[float]()

    async def one(number: int) -> None:
        async with ApiClient(state.api_socket) as client:
            turn = 0
            while time.monotonic() < end:
                began = time.monotonic()
                count = await work(client, number, turn)
                took.extend([(time.monotonic() - began) / count] * count)
                turn += 1

    await asyncio.gather(*(one(number) for number in range(clients)))
    return took


def _reading(volumes: int) -> _Work:
    async def read(client: ApiClient, number: int, turn: int) -> int:
        await client.request("GET", f"/v1/volumes/v{(number * 251 + turn) % volumes}")
        return 1

    return read


async def _changing(client: ApiClient, number: int, turn: int) -> int:
    """One change: every second one takes away what the one before has made."""
    name = f"w{number}-{turn // 2}"
    if turn % 2:
        await client.request("DELETE", f"/v1/volumes/{name}?wipe=true")
    else:
        spec = {"name": name, "backend": "null", "size": _SIZE, "volatile": True}
        await client.request("POST", "/v1/volumes", spec)
    return 1


async def _scrapes(state: StateDir) -> tuple[list[float], int]:
    took, size = [], 0
    async with ApiClient(state.api_socket) as client:
        for _ in range(_SCRAPES):
            began = time.monotonic()
            size = len(await client.request("GET", "/metrics"))
            took.append(time.monotonic() - began)
    return took, size


async def _watchers(state: StateDir, count: int) -> float:
    """Seconds from the answer to ten changes until every watcher has their events."""
    events = 10
    async with contextlib.AsyncExitStack() as stack:
        watching = [await stack.enter_async_context(ApiClient(state.api_socket)) for _ in range(count)]
        work = [asyncio.create_task(one.watch(events)) for one in watching]
        await asyncio.gather(*(one.watching.wait() for one in watching))
        volumes = tuple(_volume(f"x{number}") for number in range(events))
        await control.submit(state, Change(create=volumes))
        answered = asyncio.get_running_loop().time()
        return max(await asyncio.gather(*work)) - answered
