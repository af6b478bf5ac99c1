"""The disks that others give to a guest that moves: QEMU's own, and SPDK's over vhost-user.

Owns what serves them while their guest is there. Two QEMUs on one machine stand for two hosts: both reach the same
files.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.hugepage_loan import borrowed_hugepages
from nvmuser.bench.measure.migrant import DISK, DISKS
from nvmuser.bench.rounds import peer_servers
from nvmuser.errors import SetupError
from nvmuser.guest.spec import MIB, GuestSpec
from nvmuser.rpc import methods
from nvmuser.supervisor.spdk import MEMORY_MIB
from nvmuser.toolchain import find_spdk

PEERS = ("nvme", "virtio-blk", "vhost-user-blk")
"""QEMU's `nvme` migrates from 11.1 on."""
_VIRTIO = ("/dev/vda", "/dev/vdb")


def files(root: Path, kind: str) -> list[Path]:
    """The two files behind a guest's disks."""
    paths = [root / f"{kind}-{number}" for number in range(2)]
    for path in paths:
        with path.open("wb") as file:
            os.truncate(file.fileno(), DISK)
    return paths


@contextlib.asynccontextmanager
async def opened(peer: str, root: Path, memory: int) -> AsyncIterator[tuple[GuestSpec, tuple[str, str]]]:
    """A guest with two disks of a peer's, and what it calls them.

    :param memory: that the guest will have, in bytes.
    :raises NvmuserError: it cannot run here, with the reason.
    """
    paths = files(root, peer)
    if peer != "vhost-user-blk":
        yield GuestSpec(directories=(), qemu_args=tuple(_own(peer, paths))), DISKS if peer == "nvme" else _VIRTIO
        return
    # It dies when a guest with 4 KiB pages connects. There are two QEMUs while the guest moves.
    with borrowed_hugepages(2 * memory + MEMORY_MIB * MIB) as why_not:
        if why_not:
            raise SetupError(why_not)
        directory = root / peer
        directory.mkdir()
        volumes = [methods.aio_create(path.name, str(path), 512, str(uuid.uuid4())) for path in paths]
        core = max(os.sched_getaffinity(0))
        # As our own targets here, it sleeps while there is nothing to do.
        vhost = peer_servers.spdk_vhost(find_spdk(), volumes, directory, core, ["--interrupt-mode"])
        async with vhost as (sockets, _):
            yield GuestSpec(directories=(), hugepages=True, qemu_args=tuple(_vhost(sockets))), _VIRTIO


def _own(peer: str, paths: list[Path]) -> list[str]:
    arguments: list[str] = []
    for number, path in enumerate(paths):
        file = {"driver": "file", "filename": str(path), "aio": "native", "cache": {"direct": True}}
        node = {"driver": "raw", "node-name": f"disk{number}", "file": file, "cache": {"direct": True}}
        device: dict[str, Any] = {"driver": "virtio-blk-pci", "drive": f"disk{number}"}
        if peer == "nvme":
            device = {"driver": "nvme", "serial": f"disk{number}", "drive": f"disk{number}"}
        arguments += ["-blockdev", json.dumps(node), "-device", json.dumps(device)]
    return arguments


def _vhost(sockets: list[Path]) -> list[str]:
    arguments: list[str] = []
    for number, socket in enumerate(sockets):
        device = {"driver": "vhost-user-blk-pci", "chardev": f"vhost{number}"}
        arguments += ["-chardev", f"socket,id=vhost{number},path={socket}", "-device", json.dumps(device)]
    return arguments
