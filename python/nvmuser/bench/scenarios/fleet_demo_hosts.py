"""The hosts of `nvmuser fleet demo`: network namespaces with a state directory each, an etcd, and storage that two of
them reach: a namespace that the third one serves, and a small Ceph where that can be had.

Owns that all of it ends. What is done with them is `fleet_demo`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.ceph_cluster import POOL, CephCluster, missing
from nvmuser.bench.measure.etcd import Etcd
from nvmuser.bench.measure.namespaces import Network
from nvmuser.errors import SetupError, TargetError
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.toolchain import find_spdk
from nvmuser.toolchain.rbd import find_module

HOSTS = {"h1": "balanced", "h2": "balanced", "h3": "eco"}
"""Host → its profile. What lies on a remote or in Ceph needs pollers."""
STORE = "h3"
_NQN = "nqn.2026-11.org.nvmuser:fleet-demo"
_PORT = 4420
_NAMESPACES = ("one", "two")
_MIB = 64
_OSD_BYTES = 1 << 30
_PATIENCE_S = 60.0

_SPEC = """\
version: 1
remotes:
  - {{name: store, nqn: '{nqn}', paths: [{{address: {address}, port: {port}}}]}}
volumes:
  - {{name: root1, size: 64M}}
  - {{name: root2, size: 64M}}
  - {{name: shared, backend: remote, remote: store, remote_nsid: 1}}
  - {{name: image, {image}}}
controllers:
  - {{name: vm1, namespaces: [root1], labels: {{role: guests}}}}
  - {{name: vm2, namespaces: [root2], labels: {{role: guests}}}}
  - {{name: vm3, namespaces: [shared], host: h1}}
  - {{name: vm4, namespaces: [image], host: h1}}
"""
_REMOTE = "backend: remote, remote: store, remote_nsid: 2"
_IMAGE = f"backend: rbd, cluster: ceph, pool_name: {POOL}, create: true, size: {_MIB}M"


class Hosts:
    """Once they run.

    :param quiet: says nothing of the commands that it runs.
    """

    def __init__(self, root: Path, network: Network, *, quiet: bool) -> None:
        self._root = root
        self._network = network
        self._quiet = quiet
        self._began = time.monotonic()
        self._etcd = Etcd(root / "etcd", address=network.address)
        self.ceph: CephCluster | None = None
        self.addresses: dict[str, str] = {}

    def state(self, host: str) -> StateDir:
        return StateDir(self._root / host)

    def say(self, text: str) -> None:
        """A step, as it is done."""
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", file=sys.stderr, flush=True)

    async def on(self, host: str, *words: str) -> str:
        """Run `nvmuser` on a host.

        :raises NvmuserError: it failed.
        """
        if not self._quiet:
            self.say(f"{host}$ nvmuser {' '.join(words)}")
        return await self._network.run(host, *words, state=self.state(host).root)

    async def ask(self, host: str, *words: str) -> Any:
        """Run a command without saying so, or that may leave something undone (status 1). Returns the JSON of it.

        :raises NvmuserError: it failed.
        """
        state = self.state(host).root
        return json.loads(await self._network.run(host, *words, "--json", state=state, statuses=(0, 1)))

    @contextlib.asynccontextmanager
    async def running(self, *, ceph: bool, keep: bool) -> AsyncIterator[None]:
        """All of it, as a fleet, for as long as the block lasts, or for good.

        :param ceph: whether there is to be one; where it cannot be had, that is said.
        :raises NvmuserError: something does not start.
        """
        self.addresses = {host: self._network.add(host) for host in HOSTS}
        try:
            self._etcd.start()
            if ceph:
                await asyncio.to_thread(self._start_ceph)
            await asyncio.gather(*(self._start(host) for host in HOSTS))
            await self._serve()
            await self._join(self._etcd.url)
            yield
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                self._end()

    def _start_ceph(self) -> None:
        try:
            find_module(find_spdk().prefix)
            if absent := missing():
                raise SetupError(f"{', '.join(absent)}: not installed (Debian: ceph-mon ceph-osd ceph-common)")
            self.ceph = CephCluster(self._root / "ceph", _OSD_BYTES, self._network.address)
            self.ceph.start()
        except SetupError as error:
            self.say(f"without a Ceph: {error}")
            if self.ceph:
                self.ceph.stop()
            self.ceph = None

    async def _start(self, host: str) -> None:
        """A cluster is declared first: a target loads the module for it when it starts."""
        if self.ceph and host != STORE:
            files = ("--conf", str(self.ceph.conf), "--keyring", str(self.ceph.keyring))
            await self.on(host, "cluster", "add", "ceph", *files)
        await self.start(host)

    async def start(self, host: str) -> None:
        """Start what runs on a host: also again, when it has lost its power."""
        await self.on(host, "target", "start", "--no-hugepages", "--profile", HOSTS[host])

    def power_off(self, host: str) -> None:
        """All that runs on a host ends at once."""
        self._network.power_off(host)

    async def _serve(self) -> None:
        """Make the store's namespaces reachable over TCP, with SPDK's own commands."""
        async with await Client.connect(self.state(STORE).rpc_socket) as rpc:
            await rpc.call("nvmf_create_transport", {"trtype": "TCP"})
            await rpc.call("nvmf_create_subsystem", {"nqn": _NQN, "allow_any_host": True})
            for name in _NAMESPACES:
                file = self.state(STORE).root / f"{name}.img"
                with file.open("wb") as backing:
                    backing.truncate(_MIB << 20)
                await rpc.call("bdev_aio_create", {"name": name, "filename": str(file), "block_size": 512})
                await rpc.call("nvmf_subsystem_add_ns", {"nqn": _NQN, "namespace": {"bdev_name": name}})
            where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": self.addresses[STORE], "trsvcid": str(_PORT)}
            await rpc.call("nvmf_subsystem_add_listener", {"nqn": _NQN, "listen_address": where})

    async def _join(self, url: str) -> None:
        await self.on("h1", "fleet", "init", "--etcd", url)
        for host in HOSTS:
            await self.on(host, "fleet", "join", "--etcd", url, "--name", host, "--adopt")
        for host in HOSTS:
            words = ("cordon", host) if host == STORE else ("label", host, "role=guests")
            await self.on("h1", "host", *words)

    def write_spec(self) -> Path:
        """What is declared: two controllers by label on disks of their host alone, two on what both hosts reach."""
        spec = self._root / "fleet.yaml"
        where = {"nqn": _NQN, "address": self.addresses[STORE], "port": _PORT}
        spec.write_text(_SPEC.format(**where, image=_IMAGE if self.ceph else _REMOTE))
        return spec

    async def until(self, host: str, *, live: bool) -> float:
        """Wait until the fleet sees a host as alive, or not. Returns the seconds.

        :raises TargetError: it does not within a minute.
        """
        began = time.monotonic()
        asked = "h1" if host != "h1" else "h2"
        while (await self.ask(asked, "host", "show", host))["live"] is not live:
            if time.monotonic() - began > _PATIENCE_S:
                raise TargetError(f"host {host} is {'not ' if live else ''}seen after {_PATIENCE_S:.0f} s")
            await asyncio.sleep(0.2)
        return time.monotonic() - began

    @property
    def pids(self) -> dict[str, int]:
        """What ends everything that the hosts' targets do not."""
        etcd = {"etcd": self._etcd.process.pid} if self._etcd.process else {}
        return {host: self._network.pid(host) for host in HOSTS} | etcd | (self.ceph.pids if self.ceph else {})

    def _end(self) -> None:
        for host in self.addresses:
            self._network.power_off(host)
        if self.ceph:
            self.ceph.stop()
        self._etcd.kill()
