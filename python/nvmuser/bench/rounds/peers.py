"""Peers: the transports of a guest's disk that are compared. Ours, ours without the endpoint, QEMU's and SPDK's.

Owns each peer's QEMU arguments. A peer is opened to a `Slot`: a booted guest of its own with its one disk,
which can be paused, so that it takes nothing from the others while they are measured. The files behind the
disks are the caller's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import QMPError

from nvmuser.bench.measure import runner
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.rounds import peer_servers
from nvmuser.errors import TargetError, UsageError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.rpc import methods
from nvmuser.toolchain import find_qemu, find_spdk

OURS = "endpoint"
NVME_PEERS = (OURS, "direct", "nvme")
PEERS = (OURS, "direct", "nvme", "virtio-blk", "virtio-blk-vq", "vhost-user-blk-spdk", "vhost-user-blk-qsd")
SHORT = tuple(peer for peer in PEERS if peer != "virtio-blk-vq")
"""With one guest CPU, `iothread-vq-mapping` has one queue to map: the same thing as one iothread."""

NO_POLLING = ("vhost-user-blk-qsd",)
"""What is submitted to a polled queue of qemu-storage-daemon 11.1 never comes back: seen, not understood."""

MEMORY = 512 << 20
_QUIT = 10.0
APPEND = "nvme.poll_queues=1 virtio_blk.poll_queues=1"
"""One polled queue beside those with interrupts, in every guest: jobs choose by `hipri`."""


def machine(cpus: int) -> dict[str, Any]:
    """A guest that runs on so many CPUs, with one more that Linux never starts.

    virtio-blk has no more queues than there could be CPUs, and would have none left to poll.
    """
    return {"cpus": cpus + 1, "append": f"{APPEND} maxcpus={cpus}"}


@dataclass(frozen=True)
class Setup:
    """What all peers have in common."""

    directory: Path
    """For sockets and logs; short."""
    backing: Mapping[str, Path]
    """Each peer's own file, all alike."""
    deployment: Deployment
    no_hugepages: str | None
    """Why guests and targets have 4 KiB pages; None when all of them have hugepages."""


def queues(cpus: int) -> int:
    """Of every disk: one a CPU with interrupts, and the polled one."""
    return cpus + 1


@dataclass(frozen=True)
class Slot:
    """A booted guest with one disk. `backends` are processes that spin or poll, and are stopped while it
    is paused.
    """

    name: str
    """Of the peer, or of the variant."""
    guest: Guest
    device: str
    processes: Mapping[str, Sequence[int]]
    backends: Sequence[int] = ()
    polled: bool = True
    """Its driver has a queue without interrupts, for `hipri`."""
    memory: int = MEMORY
    """Of the guest, in bytes."""
    hugepages: bool = False
    """Whether they are 2 MiB pages."""

    @property
    def commands(self) -> dict[str, list[str]]:
        """How its processes were started, as the kernel has it: QEMU and all that are charged for its I/O."""
        return {name: _command(pids[0]) for name, pids in self.processes.items() if pids}

    async def pause(self) -> None:
        """Stop the guest and its backends."""
        await self.guest.qmp.execute("stop")
        for pid in self.backends:
            os.kill(pid, signal.SIGSTOP)

    async def resume(self) -> None:
        """Let the backends and the guest go on."""
        for pid in self.backends:
            os.kill(pid, signal.SIGCONT)
        await self.guest.qmp.execute("cont")


def _command(pid: int) -> list[str]:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return [os.fsdecode(word) for word in words[:-1]]


def _disk(backing: Path) -> list[str]:
    """The file as QEMU serves it best: no page cache, io_uring, passed-through discards."""
    node = {
        "driver": "raw",
        "node-name": "disk",
        "file": {
            "driver": "file",
            "filename": str(backing),
            "aio": "io_uring",
            "cache": {"direct": True, "no-flush": False},
            "discard": "unmap",
        },
        "cache": {"direct": True, "no-flush": False},
        "discard": "unmap",
    }
    return ["-blockdev", json.dumps(node)]


def qemu_arguments(peer: str, backing: Path, count: int, socket: Path | None = None) -> list[str]:
    """What QEMU gets for a peer that is not ours, with so many queues."""
    device: dict[str, object]
    if peer == "nvme":
        # ioeventfd: QEMU's own advice for submission from several CPUs; doorbells otherwise stop the virtual
        # CPU.
        device = {"driver": "nvme", "serial": "bench", "drive": "disk", "max_ioqpairs": count, "ioeventfd": True}
        return [*_disk(backing), "-device", json.dumps(device)]
    if peer == "virtio-blk":
        device = {"driver": "virtio-blk-pci", "drive": "disk", "num-queues": count, "iothread": "io0"}
        return ["-object", "iothread,id=io0", *_disk(backing), "-device", json.dumps(device)]
    if peer == "virtio-blk-vq":
        threads = [f"io{number}" for number in range(count)]
        mapping = [{"iothread": thread} for thread in threads]
        device = {
            "driver": "virtio-blk-pci",
            "drive": "disk",
            "num-queues": count,
            "iothread-vq-mapping": mapping,
        }
        objects = [word for thread in threads for word in ("-object", f"iothread,id={thread}")]
        return [*objects, *_disk(backing), "-device", json.dumps(device)]
    assert socket is not None
    device = {"driver": "vhost-user-blk-pci", "chardev": "vhost", "num-queues": count}
    return ["-chardev", f"socket,id=vhost,path={socket}", "-device", json.dumps(device)]


@dataclass(frozen=True)
class _Attachment:
    """How one peer's disk reaches QEMU, and who works for it on the host."""

    processes: Mapping[str, Sequence[int]]
    stopped: Sequence[int] = ()
    sockets: tuple[Path, ...] = ()
    arguments: Sequence[str] = ()


async def _ours(peer: str, setup: Setup) -> _Attachment:
    direct = peer == "direct"
    processes = await setup.deployment.processes(direct=direct)
    # The other one of ours, if it is there, has paused the target that both share.
    _continue(processes["target"])
    socket = await setup.deployment.disk(f"bench-{peer}", setup.backing[peer], direct=direct)
    return _Attachment(processes, stopped=processes["target"], sockets=(socket,))


async def _attach(peer: str, setup: Setup, cpus: int, stack: contextlib.AsyncExitStack) -> _Attachment:
    backing, directory, count = setup.backing[peer], setup.directory / peer, queues(cpus)
    if peer in (OURS, "direct"):
        return await _ours(peer, setup)
    if peer == "vhost-user-blk-qsd":
        daemon = peer_servers.storage_daemon(find_qemu(), backing, directory, count)
        socket, pid = await stack.enter_async_context(daemon)
        return _Attachment({"backend": [pid]}, arguments=qemu_arguments(peer, backing, count, socket))
    if peer == "vhost-user-blk-spdk":
        if setup.no_hugepages:
            raise TargetError(f"it dies when a guest with 4 KiB pages connects; {setup.no_hugepages}")
        volume = methods.aio_create("disk", str(backing), 512, str(uuid.uuid4()))
        vhost = peer_servers.spdk_vhost(find_spdk(), [volume], directory, max(os.sched_getaffinity(0)))
        sockets, pid = await stack.enter_async_context(vhost)
        arguments = qemu_arguments(peer, backing, count, sockets[0])
        return _Attachment({"backend": [pid]}, stopped=[pid], arguments=arguments)
    return _Attachment({}, arguments=qemu_arguments(peer, backing, count))


@contextlib.asynccontextmanager
async def open_peer(peer: str, setup: Setup, cpus: int) -> AsyncIterator[Slot]:
    """Boot a peer's guest and find its disk.

    :raises UsageError: no such peer. :raises NvmuserError: it cannot run here, with the reason.
    """
    if peer not in PEERS:
        raise UsageError(f"no peer is called '{peer}': choose among {', '.join(PEERS)}")
    directory = setup.directory / peer
    directory.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        attachment = await _attach(peer, setup, cpus, stack)
        spec = GuestSpec(
            **machine(cpus),
            memory=MEMORY,
            sockets=attachment.sockets,
            hugepages=setup.no_hugepages is None,
            qemu_args=tuple(attachment.arguments),
        )
        disks = "nvme*n*" if peer in NVME_PEERS else "vd*"
        yield await stack.enter_async_context(
            booted_slot(peer, spec, directory, disks, attachment.processes, attachment.stopped)
        )


@contextlib.asynccontextmanager
async def booted_slot(
    name: str,
    spec: GuestSpec,
    directory: Path,
    disks: str,
    processes: Mapping[str, Sequence[int]],
    backends: Sequence[int] = (),
) -> AsyncIterator[Slot]:
    """Boot a guest with one disk, whose name in the guest matches `disks`.

    :raises GuestError: it does not boot, or sees no disk.
    """
    async with contextlib.AsyncExitStack() as stack:
        guest = await stack.enter_async_context(launch(spec, directory / "vm"))
        # A stopped process cannot end in good order.
        stack.callback(_continue, backends)
        [device] = await runner.block_devices(guest, disks, 1)
        answer = await guest.run(f"cat /sys/block/{Path(device).name}/queue/io_poll", timeout=60, check=True)
        charged = {**processes, "qemu": [guest.process.pid]}
        polled = answer.stdout.strip() == b"1" and name not in NO_POLLING
        yield Slot(name, guest, device, charged, backends, polled, spec.memory, spec.hugepages is True)
        # A paused guest cannot shut down by itself, and nobody needs its data. QEMU disconnects from its
        # backend.
        _continue(backends)
        with contextlib.suppress(QMPError):
            await guest.qmp.execute("quit")
        await guest.process.wait_ended(_QUIT)


def _continue(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
