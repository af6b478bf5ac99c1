"""Installations of nvmuser over a real Ceph, for tests: each a state directory with a supervisor and targets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser import initiator
from nvmuser.bench.measure.ceph_cluster import POOL, CephCluster
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client
from nvmuser.supervisor import daemon
from nvmuser.supervisor.spdk import Options

MIB = 1 << 20
NAME = "ceph"


def cluster_of(ceph: CephCluster, **fields: str) -> Cluster:
    return Cluster(NAME, **({"conf": str(ceph.conf), "keyring": str(ceph.keyring)} | fields))


def image(name: str, **fields: Any) -> Volume:
    """A volume on an image of the same name."""
    return Volume(name, "rbd", cluster=NAME, pool_name=POOL, **fields)


@dataclass
class Installation:
    """One that runs."""

    state: StateDir
    control: Client

    async def create(self, *objects: Any) -> list[dict[str, Any]]:
        """What was made, with identities."""
        return await self.change(Change(create=objects))

    async def change(self, change: Change) -> list[dict[str, Any]]:
        outcome = await self.control.call("change", {"change": change.to_json()}, timeout=60)
        return list(outcome["objects"])

    async def delete(self, *keys: str) -> None:
        await self.change(Change(delete=tuple(map(Key.parse, keys)), wipe=True))

    async def show(self, volume: str) -> Path:
        """The directory of a new controller with a volume, to which a host may connect."""
        await self.create(Controller(f"c-{volume}", namespaces=(Namespace(volume),)))
        return self.state.target_dir(f"c-{volume}")

    async def pid(self) -> int:
        return int((await self.control.call("status"))["target"]["pid"])

    async def successor(self, pid: int) -> int:
        """The process that serves in the place of one that was killed."""
        while True:
            target = (await self.control.call("status"))["target"]
            if target["ready"] and target["pid"] not in (pid, None):
                return int(target["pid"])
            await asyncio.sleep(0.02)


@asynccontextmanager
async def installation(ceph: CephCluster, root: Path, *, profile: str = "eco") -> AsyncIterator[Installation]:
    """With the cluster declared, and a target that has the module for it."""
    state = StateDir(root)
    with contextlib.closing(Engine(state)) as engine:
        await engine.change(Change(create=(cluster_of(ceph),)))
    async with daemon.running(state, Options(profile=profile, hugepages=False)) as control:
        yield Installation(state, control)


def write(directory: Path, lba: int, data: bytes) -> None:
    """Write through a controller, as a host."""
    with initiator.connect(directory) as controller, controller.queue(depth=4, timeout=30) as queue:
        queue.write(controller.namespace(1), lba, data).wait()


def read(directory: Path, lba: int, size: int) -> bytes:
    with initiator.connect(directory) as controller, controller.queue(depth=4, timeout=30) as queue:
        memory = initiator.allocate(size)
        queue.read(controller.namespace(1), lba, memory).wait()
        return bytes(memory.view)
