"""A fleet without etcd: how long the I/O of clients takes on each host, with it and without it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from nvmuser.bench.measure.etcd import Etcd
from nvmuser.errors import NvmuserError
from nvmuser.fleet.session import Session
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor.control import local_actor

_BYTES = 256 << 20
_CLIENT = """
import sys
from nvmuser import initiator
with initiator.connect(sys.argv[1]) as controller:
    namespace = controller.namespace(1)
    initiator.measure(controller, namespace, pattern="randwrite", depth=4, size=4096, seconds=1)
    for line in sys.stdin:
        result = initiator.measure(controller, namespace, pattern="randwrite", depth=4, size=4096, seconds=float(line))
        print(result.max_us / 1e6, result.errors, flush=True)
"""


class Clients:
    """One on each host, which writes to a disk there, through the endpoint, as a guest does."""

    def __init__(self, processes: Mapping[str, asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def longest(self, seconds: float) -> dict[str, float]:
        """The longest I/O on each host in so many seconds.

        :raises NvmuserError: an I/O failed, or a client has ended.
        """
        found = await asyncio.gather(*(_longest(one, seconds) for one in self._processes.values()))
        return dict(zip(self._processes, found, strict=True))


async def _longest(client: asyncio.subprocess.Process, seconds: float) -> float:
    assert client.stdin
    assert client.stdout
    client.stdin.write(f"{seconds}\n".encode())
    words = (await client.stdout.readline()).split()
    if len(words) != 2 or words[1] != b"0":
        raise NvmuserError("a client of the outage has failed")
    return float(words[0])


@contextlib.asynccontextmanager
async def clients(one: Session, hosts: Mapping[str, StateDir]) -> AsyncIterator[Clients]:
    """Declare a disk for each, and start them.

    :raises NvmuserError: a disk was refused.
    """
    processes: dict[str, asyncio.subprocess.Process] = {}
    try:
        for host, state in hosts.items():
            name = f"disk-{host}"
            disk = (Volume(name, size=_BYTES), Controller(name, (Namespace(name),)))
            await one.change(Change(create=disk), local_actor(), {}, host)
            processes[host] = await _start(state.guest_dir(name))
        yield Clients(processes)
    finally:
        for process in processes.values():
            assert process.stdin
            process.stdin.close()
            await process.wait()


async def _start(directory: Path) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-c", _CLIENT, str(directory), stdin=pipe, stdout=pipe)


async def outage(one: Session, hosts: Mapping[str, StateDir], etcd: Etcd, seconds: float) -> dict[str, float]:
    """The longest I/O of all of them, with etcd and without it.

    :raises NvmuserError: an I/O failed.
    """
    async with clients(one, hosts) as found:
        before = await found.longest(seconds)
        etcd.kill()
        try:
            without = await found.longest(seconds)
        finally:
            etcd.start()
    return {"seconds": seconds, "longest_io_with_s": max(before.values()), "longest_io_s": max(without.values())}
