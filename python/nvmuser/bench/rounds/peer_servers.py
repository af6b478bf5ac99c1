"""Helper processes behind some peers: vhost-user-blk served by SPDK and by QEMU's storage daemon.

Owns these processes from their start to their end. Their arguments are given what suits them best: direct
I/O, io_uring, an iothread, hugepages for SPDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from nvmuser.errors import GuestError, RpcError, TargetError
from nvmuser.hostfs.sockets import answers, check_socket_path
from nvmuser.rpc import Client
from nvmuser.rpc.methods import Request
from nvmuser.supervisor.spdk import MEMORY_MIB, NO_TRACE, Options, arguments
from nvmuser.toolchain import Qemu, Spdk

VHOST_RPC = "vhost.rpc"
"""The RPC socket of SPDK's vhost target, in its directory."""
_START = 30.0
_GRACE = 10.0


@contextlib.asynccontextmanager
async def process(
    argv: Sequence[str], log: Path, *, end: signal.Signals = signal.SIGTERM
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child with its output in a file, ended by a signal when the block ends."""
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(end)
        try:
            await asyncio.wait_for(child.wait(), _GRACE)
        except TimeoutError:
            child.kill()
            await child.wait()


async def _listening(child: asyncio.subprocess.Process, socket: Path, log: Path) -> None:
    """:raises GuestError: the process ended, or does not listen after half a minute."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START):
            while child.returncode is None:
                if answers(socket):
                    return
                await asyncio.sleep(0.05)
    raise GuestError(f"nothing listens at {socket}; see {log}")


def storage_daemon_arguments(backing: Path, socket: Path, queues: int) -> list[str]:
    """qemu-storage-daemon: a file exported as vhost-user-blk, with an iothread of its own."""
    file = {
        "driver": "file",
        "node-name": "disk",
        "filename": str(backing),
        "aio": "io_uring",
        "cache": {"direct": True},
        "discard": "unmap",
    }
    export = {
        "type": "vhost-user-blk",
        "id": "export",
        "node-name": "disk",
        "addr": {"type": "unix", "path": str(socket)},
        "writable": True,
        "num-queues": queues,
        "iothread": "io",
    }
    return ["--object", "iothread,id=io", "--blockdev", json.dumps(file), "--export", json.dumps(export)]


@contextlib.asynccontextmanager
async def storage_daemon(qemu: Qemu, backing: Path, directory: Path, queues: int) -> AsyncIterator[tuple[Path, int]]:
    """A daemon that serves the file while the block runs. Yields its socket and its pid."""
    socket, log = directory / "qsd.sock", directory / "qsd.log"
    check_socket_path(socket)
    socket.unlink(missing_ok=True)
    argv = [*qemu.tool("qemu-storage-daemon"), *storage_daemon_arguments(backing, socket, queues)]
    async with process(argv, log) as child:
        # Connecting only to look would take the one connection that an export serves; the socket is made by
        # bind and listen in one go, so that its being there is enough.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START):
                while child.returncode is None and not socket.exists():  # noqa: ASYNC110 (a file has no event)
                    await asyncio.sleep(0.05)
        if not socket.exists():
            raise GuestError(f"qemu-storage-daemon did not start; see {log}")
        yield socket, child.pid


@contextlib.asynccontextmanager
async def spdk_vhost(
    spdk: Spdk, volumes: Sequence[Request], directory: Path, core: int, more: Sequence[str] = ()
) -> AsyncIterator[tuple[list[Path], int]]:
    """SPDK's own vhost target with a vhost-user-blk controller on each volume, in hugepages. Yields their sockets
    and the target's pid.
    """
    names = [f"vhost-blk{number or ''}" for number in range(len(volumes))]
    rpc_socket, log = directory / VHOST_RPC, directory / "vhost.log"
    check_socket_path(directory / names[-1])
    argv = [str(spdk.binary("vhost")), "--no-pci", "--rpc-socket", str(rpc_socket), "--cpumask", f"[{core}]"]
    argv += ["--disable-cpumask-locks", "--mem-size", str(MEMORY_MIB), "--huge-unlink", "-S", str(directory)]
    argv += [*NO_TRACE, *more]
    async with process(argv, log) as child:
        await _listening(child, rpc_socket, log)
        try:
            async with await Client.connect(rpc_socket) as rpc:
                await rpc.call("framework_wait_init", timeout=_START)
                for name, volume in zip(names, volumes, strict=True):
                    device = await rpc.call(volume.method, dict(volume.params))
                    await rpc.call("vhost_create_blk_controller", {"ctrlr": name, "dev_name": device})
        except RpcError as error:
            raise TargetError(f"SPDK's vhost: {error}; see {log}") from None
        yield [directory / name for name in names], child.pid


@contextlib.asynccontextmanager
async def nvmf_target(
    spdk: Spdk, directory: Path, options: Options, more: Sequence[str] = ()
) -> AsyncIterator[tuple[Client, int]]:
    """A bare `nvmf_tgt`, started as the supervisor would. Yields a connection to it and its pid.

    It is killed, for SPDK 26.01 can crash when it shuts down while a guest still disconnects; nobody
    needs its data.
    """
    rpc_socket, log = directory / "spdk.rpc", directory / "spdk.log"
    check_socket_path(rpc_socket)
    argv = [*arguments(spdk, rpc_socket, options), *more]
    async with process(argv, log, end=signal.SIGKILL) as child:
        await _listening(child, rpc_socket, log)
        try:
            async with await Client.connect(rpc_socket) as rpc:
                await rpc.call("framework_wait_init", timeout=_START)
                yield rpc, child.pid
        except RpcError as error:
            raise TargetError(f"SPDK: {error}; see {log}") from None
