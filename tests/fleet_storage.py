"""Hosts of a fleet with real targets, on storage that they share: a namespace of a remote, and images in Ceph.

A host is a state directory with a supervisor and all its processes, which are killed, stopped and woken together; it
reaches etcd and the remote by connections of its own, which can be cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bare_target import TargetFactory
from etcd_server import Etcd
from fleet_world import ADMIN, until
from fleet_writer import BLOCK, BLOCKS, said
from remote_pair import free_port

from nvmuser import initiator
from nvmuser.bench.measure.ceph_cluster import POOL, CephCluster
from nvmuser.ceph import images
from nvmuser.errors import HostConnectionError, RpcError
from nvmuser.fleet import membership
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.move import move
from nvmuser.fleet.records import Owner
from nvmuser.fleet.session import Session, opened, session
from nvmuser.fleet.settings import FleetSettings
from nvmuser.hostfs import host_identity, reservation_keys
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Cluster, Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.model.where import Where
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client
from nvmuser.rpc.methods import reservations
from nvmuser.rpc.methods.reservations import Completion, Report
from nvmuser.supervisor import control, daemon
from nvmuser.supervisor.spdk import Options

NQN, SIZE = "nqn.2026-11.org.example:store", 64 << 20
_NUMBERS = itertools.count()


class Door:
    """A TCP port that leads to another one, until it is cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self._open = True
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self, cut: bool = True) -> None:
        """End every connection, and take none."""
        self._open = not cut
        if cut:
            for writer in self._writers:
                writer.transport.abort()

    async def stop(self) -> None:
        self.cut()
        if self._server:
            self._server.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        with contextlib.suppress(OSError):
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        self._writers -= both


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.transport.abort()


@dataclass
class Writer:
    """A process that writes to a volume, block by block, for as long as it can (`fleet_writer`)."""

    process: asyncio.subprocess.Process
    log: Path
    epoch: int

    @property
    def lines(self) -> list[list[str]]:
        text = self.log.read_text()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def answered(self) -> int:
        return sum(line[0] == "a" for line in self.lines)

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@dataclass
class RealHost:
    """One that runs, or is dead."""

    name: str
    fleet: str
    state: StateDir
    etcd: Door
    store: Door
    writers: list[Writer] = field(default_factory=list)

    @property
    def settings(self) -> FleetSettings:
        return FleetSettings(self.fleet, self.name, (f"http://127.0.0.1:{self.etcd.port}",))

    async def start(self) -> None:
        """As after a boot."""
        options = Options(hugepages=False, profile="balanced")
        await asyncio.to_thread(daemon.start, self.state, options)

    async def join(self) -> None:
        identity = host_identity.load(self.state).id
        progress, _ = await membership.join(self.settings, identity, Desired(), ADMIN, adopt=False)
        progress.save(self.state)
        self.settings.save(self.state)

    @property
    def pids(self) -> list[int]:
        """All of its processes."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return f"{self.state.root}".encode() in words and pid != os.getpid()

    def signal(self, number: int) -> None:
        """To all of them at once."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def power_off(self) -> None:
        """All of its processes at once, and what it had in memory."""
        for writer in self.writers:
            await writer.end()
        self.signal(signal.SIGKILL)
        await until(lambda: not self.pids)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # noqa: ASYNC222 (it has ended)
                pass

    async def stop(self) -> None:
        with contextlib.suppress(Exception):
            await daemon.stop(self.state)
        await self.power_off()

    async def status(self) -> dict[str, Any]:
        async with await Client.connect(self.state.control_socket) as client:
            return dict(await client.call("status"))

    def has_volume(self, name: str) -> bool:
        """Whether its own store has it."""
        return any(one.kind == "volume" and one.name == name for one in control.load(self.state).wanted())

    async def write(self, name: str, epoch: int) -> Writer:
        """Begin to write to a controller that is served here."""
        log = self.state.root.parent / f"{self.name}-{name}-{epoch}-{len(self.writers)}.log"
        argv = [sys.executable, str(Path(__file__).with_name("fleet_writer.py")), str(self.state.target_dir(name))]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(*argv, str(epoch), stdout=output, stderr=output)
        writer = Writer(process, log, epoch)
        self.writers.append(writer)
        return writer


@dataclass
class StorageWorld:
    """Two hosts or more."""

    etcd: Etcd
    fleet: str
    hosts: dict[str, RealHost]
    far: Client
    ceph: CephCluster | None
    lacks: list[str] = field(default_factory=list)
    """Why it was not settled when that was last looked at."""

    def session(self) -> contextlib.AbstractAsyncContextManager[Session]:
        return session(FleetSettings(self.fleet, "", (self.etcd.url,)))

    async def owner(self, volume: str) -> Owner:
        async with self.session() as one:
            return next(owner for owner in (await one.view()).owners.values() if owner.volume == volume)

    async def move(self, controller: str, to: str, *, force: bool = False) -> None:
        async with self.session() as one:
            await move(one, controller, to, ADMIN, force=force)

    async def declare(self, host: str, *objects: AnyObject, failover: str = "") -> None:
        wheres = {one.key: Where(host, failover=failover) for one in objects if one.kind == "controller"}
        async with self.session() as one:
            outcome = await one.change(Change(create=objects), ADMIN, wheres, host)
        assert not outcome.problems, outcome.problems

    async def is_settled(self, *volumes: str) -> bool:
        """The owner of each serves and nobody else has it, and is who the storage lets in."""
        self.lacks = [why for volume in volumes if (why := await self._lacks(volume))]
        return not self.lacks

    async def _lacks(self, volume: str) -> str:
        owner = await self.owner(volume)
        has, host = [name for name, host in self.hosts.items() if host.has_volume(volume)], self.hosts[owner.host]
        if owner.state != "open" or has != [owner.host]:
            return f"{volume}: {owner.state} on {owner.host}, and {has} have it"
        if not (await host.status())["target"]["ready"] or not host.state.target_dir(volume).exists():
            return f"{volume}: not served on {owner.host}"
        return "" if await self._lets_in(volume, owner) else f"{volume}: the storage does not let in {owner}"

    async def _lets_in(self, volume: str, owner: Owner) -> bool:
        """Whether the storage lets in the owner alone, by what etcd has of it."""
        desired = control.load(self.hosts[owner.host].state)
        found = desired.get(Key("volume", volume))
        assert isinstance(found, Volume)
        fence = next(one for one in owner.fences if one["host"] == owner.host)  # who tried and failed may be named too
        if found.backend == "rbd":
            seen = (await asyncio.to_thread(images.look_at, self.cluster(), [found]))[found]
            return isinstance(seen, images.Image) and bool(seen.held_by(fence["address"].split()))
        remote = next(one for one in desired.remotes() if one.name == found.remote)
        try:
            async with await Client.connect(self.hosts[owner.host].state.rpc_socket) as rpc:
                request = reservations.report(remote.in_spdk, found.remote_nsid)
                reply = await rpc.call(request.method, request.params)
        except RpcError:
            return False  # no path has a connection yet
        holder = Report.parse(Completion.parse(reply).data).holder
        return holder is not None and reservation_keys.host_in(holder.host_id) == fence["id"]

    async def live(self, *names: str) -> bool:
        async with self.session() as one:
            return set(names) <= (await one.view()).live

    def remote(self, name: str = "r") -> tuple[AnyObject, ...]:
        """A controller on the remote's namespace, which both hosts reach at one address."""
        remote = Remote("store", nqn=NQN, paths=(RemotePath("127.0.0.1", self.hosts["h1"].store.port),))
        return remote, Volume(name, "remote", remote="store", remote_nsid=1), _shows(name)

    def image(self, name: str = "i") -> tuple[AnyObject, ...]:
        """A controller on an image that is made."""
        assert self.ceph
        image = f"{self.fleet}-{name}"
        return Volume(name, "rbd", size=SIZE, cluster="ceph", pool_name=POOL, image=image, create=True), _shows(name)

    def cluster(self) -> Cluster:
        assert self.ceph
        return Cluster("ceph", conf=str(self.ceph.conf), keyring=str(self.ceph.keyring))


def _shows(name: str) -> Controller:
    return Controller(name, (Namespace(name),))


@contextlib.asynccontextmanager
async def storage_world(
    root: Path, etcd: Etcd, factory: TargetFactory, ceph: CephCluster | None, names: tuple[str, ...] = ("h1", "h2")
) -> AsyncIterator[StorageWorld]:
    """A fleet whose hosts live.

    :param root: a short path, for the sockets in it.
    """
    store, fleet = factory.start("far"), f"storage{next(_NUMBERS)}"
    async with await Client.connect(store.rpc_socket) as far, opened(FleetSettings(fleet, "", (etcd.url,))) as client:
        port, hosts = free_port(), dict[str, RealHost]()
        await _serve(far, port, root / "store")
        await membership.init(client, FleetKeys(fleet))
        for name in names:
            doors = Door(int(etcd.url.rpartition(":")[2])), Door(port)
            hosts[name] = RealHost(name, fleet, StateDir(root / name), *doors)
        world = StorageWorld(etcd, fleet, hosts, far, ceph)
        try:
            for host in hosts.values():
                await host.etcd.start()
                await host.store.start()
                daemon.prepare(host.state)
                await host.join()
            if ceph:
                async with world.session() as one:  # before the targets start, which load the module then
                    await one.change(Change(create=(world.cluster(),)), ADMIN, {}, "")
                for host in hosts.values():
                    with contextlib.closing(Engine(host.state)) as engine:
                        await engine.change(Change(create=(world.cluster(),)))
            await asyncio.gather(*(host.start() for host in hosts.values()))
            await until(lambda: world.live(*names), 30)
            yield world
        finally:
            for host in hosts.values():
                host.signal(signal.SIGCONT)
            await asyncio.gather(*(host.stop() for host in hosts.values()))
            for host in hosts.values():
                await host.etcd.stop()
                await host.store.stop()


async def _serve(far: Client, port: int, file: Path) -> None:
    with file.open("wb") as backing:
        backing.truncate(SIZE)
    where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
    for method, params in (
        ("nvmf_create_transport", {"trtype": "TCP"}),
        ("bdev_aio_create", {"name": "store", "filename": str(file), "block_size": 512}),
        ("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "serial_number": "STORE"}),
        ("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "store"}}),
        ("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": where}),
    ):
        await far.call(method, params)


def blocks(host: RealHost, controller: str) -> list[tuple[int, int] | None]:
    """Epoch and number of each block, as a host reads it."""
    with _connected(host, controller) as found, found.queue(depth=4, timeout=30) as queue:
        namespace, memory = found.namespace(1), initiator.allocate(BLOCK)
        read = []
        for block in range(BLOCKS):
            queue.read(namespace, block * (BLOCK // namespace.block_size), memory).wait()
            read.append(said(bytes(memory.view)))
        return read


def _connected(host: RealHost, controller: str) -> initiator.Controller:
    """A writer that was killed may not be gone for its target yet: it takes one host at a time."""
    end = time.monotonic() + 20
    while True:
        try:
            return initiator.connect(host.state.target_dir(controller))
        except HostConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
