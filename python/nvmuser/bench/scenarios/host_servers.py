"""The servers of `nvmuser bench host`: one volume each, on a CPU of their own, with everything private.

Owns the processes while their blocks run, and what a server is asked for before and after a run. Clients are
`host_programs`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nvmuser.bench.rounds import peer_servers
from nvmuser.errors import UsageError
from nvmuser.paths import StateDir
from nvmuser.rpc import Client, methods
from nvmuser.rpc.methods import Request
from nvmuser.supervisor.spdk import Options, Target
from nvmuser.toolchain import Spdk

VOLUME_BYTES = 64 << 20
NQN = "nqn.2026-11.org.nvmuser:bench"
_VOLUME = "bench"
_UUID = "5f3c7f0e-9a39-4e0e-8d55-3f1c5f6f2a01"
_BLOCK = 4096


def cpus() -> tuple[int, int]:
    """The client's and the server's.

    :raises UsageError: there is one only.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise UsageError("two CPUs are needed, one for the target and one for its client")
    return allowed[0], allowed[-1]


def volume(file: Path | None) -> Request:
    """:param file: None for memory, of `VOLUME_BYTES`."""
    if file is None:
        return methods.malloc_create(_VOLUME, VOLUME_BYTES, _BLOCK, _UUID)
    return methods.aio_create(_VOLUME, str(file.resolve()), _BLOCK, _UUID)


@asynccontextmanager
async def nvmf(
    root: Path, spdk: Spdk, cpu: int, volume: Request, *, hugepages: bool = False
) -> AsyncIterator[tuple[Target, Path]]:
    """A target of ours, and the directory of its one controller's socket. It is killed in the end."""
    state = StateDir(root / "s")
    directory = state.target_dir(_VOLUME)
    for needed in (state.run, state.logs, directory):
        needed.mkdir(parents=True, exist_ok=True)
    target = await Target.start(state, spdk, Options(hugepages=hugepages, cores=(cpu,)), 1)
    try:
        for request in (
            methods.create_transport(),
            volume,
            methods.create_subsystem(NQN, "BENCH", 1, 1),
            methods.add_namespace(NQN, 1, _VOLUME, uuid=_UUID, nguid=_UUID.replace("-", ""), eui64=_UUID[:8] * 2),
            methods.add_listener(NQN, str(directory)),
        ):
            await target.rpc.call(request.method, dict(request.params))
        yield target, directory
    finally:
        await target.process.kill()
        await target.close()


@asynccontextmanager
async def vhost(root: Path, spdk: Spdk, cpu: int, volume: Request) -> AsyncIterator[tuple[Client, int, Path]]:
    """SPDK's vhost target, in hugepages: a connection to it, its pid, and its vhost-user-blk socket."""
    directory = root / "v"
    directory.mkdir(exist_ok=True)
    async with (
        peer_servers.spdk_vhost(spdk, [volume], directory, cpu) as ([socket], pid),
        await Client.connect(directory / peer_servers.VHOST_RPC) as rpc,
    ):
        yield rpc, pid, socket


async def busy_seconds(rpc: Client) -> float:
    """For how long the reactor of a server has done something, other than to look whether there is something to do."""
    answer = await rpc.call("framework_get_reactors")
    return float(sum(reactor["busy"] for reactor in answer["reactors"]) / answer["tick_rate"])
