"""Volumes that outlive a host, for measurements: in Ceph, on remotes, encrypted, and on files to compare with.

Owns how each is declared in a deployment of ours. Another kind is a class like these, its name in `KINDS` and its line
in `kinds`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.scenarios.shared_remote import Store, encrypted_disk
from nvmuser.bench.scenarios.verified import backing
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine

DISK = "survivor"
KINDS = ("rbd", "remote", "encrypted", "file")
_SIZE = 512 << 20


@dataclass(frozen=True)
class Ceph:
    """Where images are made, and removed afterwards."""

    cluster: Cluster
    pool: str

    async def declare(self, state: StateDir) -> None:
        """Declare the cluster in a state directory whose target has not been started: it loads the module then."""
        with contextlib.closing(Engine(state)) as engine:
            await engine.change(Change(create=(replace(self.cluster, spdk_name=""),)))

    def volume(self, name: str, *, size: int = 0) -> Volume:
        """On an image; with a size, on one that is made."""
        return Volume(
            name, "rbd", size=size, cluster=self.cluster.name, pool_name=self.pool, image=f"nvmuser-bench-{name}",
            create=bool(size),
        )  # fmt: skip


class Kind(Protocol):
    """A kind of volume under a guest."""

    async def declare(self, state: StateDir) -> None:
        """What has to be known before the target starts."""

    async def disk(self, deployment: Deployment, root: Path) -> Path:
        """Make the volume and its controller; returns the guest's socket."""

    async def remove(self, deployment: Deployment) -> None:
        """Leave nothing of it behind."""


class FileKind:
    """A file in the measurement's directory, which goes with that."""

    async def declare(self, state: StateDir) -> None:
        """Nothing."""

    async def disk(self, deployment: Deployment, root: Path) -> Path:
        return await deployment.disk(DISK, backing(root / DISK))

    async def remove(self, deployment: Deployment) -> None:
        """Nothing."""


class RbdKind:
    """An image that is made, and removed."""

    def __init__(self, ceph: Ceph) -> None:
        self._ceph = ceph

    async def declare(self, state: StateDir) -> None:
        await self._ceph.declare(state)

    async def disk(self, deployment: Deployment, root: Path) -> Path:
        await show(deployment, self._ceph.volume(DISK, size=_SIZE))
        return deployment.state.socket(DISK)

    async def remove(self, deployment: Deployment) -> None:
        await hide(deployment, DISK)


class RemoteKind:
    """A namespace of a store that is started, and stopped."""

    def __init__(self) -> None:
        self._store = Store()

    async def declare(self, state: StateDir) -> None:
        """Nothing."""

    async def disk(self, deployment: Deployment, root: Path) -> Path:
        await self._store.start(root)
        change = self._store.declaration(DISK)
        await deployment.control.call("change", {"change": change.to_json()}, timeout=None)
        return deployment.state.socket(DISK)

    async def remove(self, deployment: Deployment) -> None:
        await hide(deployment, DISK)
        await self._store.stop()


class EncryptedKind(FileKind):
    """A file that holds ciphertext."""

    async def disk(self, deployment: Deployment, root: Path) -> Path:
        return await encrypted_disk(deployment, DISK, root)


async def show(deployment: Deployment, volume: Volume) -> None:
    """A volume, and a controller of the same name that shows it."""
    controller = Controller(volume.name, namespaces=(Namespace(volume.name),))
    change = Change(create=(volume, controller))
    await deployment.control.call("change", {"change": change.to_json()}, timeout=None)


async def hide(deployment: Deployment, name: str) -> None:
    """Take both away; an image that was made is removed."""
    change = Change(delete=(Key("controller", name), Key("volume", name)), wipe=True, force=True)
    await deployment.control.call("change", {"change": change.to_json()}, timeout=None)


def kinds(ceph: Ceph) -> Mapping[str, Kind]:
    """What is killed under, by its name in the document."""
    return {"rbd": RbdKind(ceph), "remote": RemoteKind(), "encrypted": EncryptedKind(), "file": FileKind()}
