"""Keeps a guest from being migrated, or saved, while it uses QEMU's own vfio-user client.

QEMU 10.1 to 11.1 does not know that it cannot: `vfio_user_pci_realize` (hw/vfio-user/pci.c) neither makes the device
migratable nor adds a migration blocker, not even with `-only-migratable`. A migration then succeeds, without the
device's state and without the pages that the target wrote by DMA, and the disk is dead at its destination. So the guest
gets a block node that no device uses, of a format that blocks migration (`vmdk_open` in block/vmdk.c). The guest sees
nothing of it; QEMU refuses with the node's name, which explains why.

Owns that node and its image, a text file. With libvfio nothing is needed: QEMU itself blocks a `vfio-pci`
device whose server does not speak VFIO's migration.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient

from nvmuser.errors import GuestError
from nvmuser.hostfs import permissions

NODE = "vfio-user-pci-is-not-migratable"
"""QEMU shows it in its refusal. Names of nodes have at most 31 characters."""

IMAGE = "no-migration.vmdk"

_TEXT = f"""\
# Disk DescriptorFile
# By this disk of one sector nvmuser keeps QEMU from migrating a guest that would lose its NVMe controllers.
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"

RW 1 FLAT "{IMAGE}" 0
"""
_SECTOR = 512
"""The sector that it describes is the file itself. Without one QEMU 11.1 aborts when it is asked for its block nodes
(vmdk_co_get_info: Assertion `s->num_extents' failed)."""


def image_beside(sockets: Sequence[Path]) -> Path:
    """Where a QEMU that can reach these controllers can reach the image too: above their directories."""
    return sockets[0].parent.parent / IMAGE


def write_image(path: Path) -> None:
    """Make the image if it is not there, readable for every QEMU.

    :raises AccessError: this user may not make it.
    :raises GuestError: it cannot be made.
    """
    try:
        with permissions.explained():
            if path.exists():
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f".{path.name}.{os.getpid()}")
            scratch.write_bytes(_TEXT.encode("ascii").ljust(_SECTOR, b"\n"))
            scratch.chmod(0o644)
            scratch.replace(path)
    except OSError as error:
        raise GuestError(f"{path}: {error.strerror}; it keeps QEMU from a migration that loses the disks") from error


def blocker(image: Path) -> dict[str, Any]:
    """The block node, for `-blockdev` and for QMP's blockdev-add."""
    file = {"driver": "file", "filename": str(image), "read-only": True}
    return {"driver": "vmdk", "node-name": NODE, "read-only": True, "file": file}


async def block(qmp: QMPClient, image: Path) -> None:
    """Keep a running QEMU from migrating.

    :raises GuestError: it refuses: it was started with -only-migratable, or is migrating now.
    """
    write_image(image)
    try:
        await qmp.execute("blockdev-add", blocker(image))
    except ExecuteError as error:
        raise GuestError(
            f"a guest with vfio-user-pci cannot be migrated, and QEMU does not take the node that prevents it: {error}"
        ) from error


async def unblock(qmp: QMPClient) -> None:
    """The last device of QEMU's vfio-user client is gone, or did not come."""
    with contextlib.suppress(ExecuteError):  # there was none
        await qmp.execute("blockdev-del", {"node-name": NODE})
