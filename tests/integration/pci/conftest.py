"""A device with all there is, served, and a client that is connected to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pci_device import Everything, connect, off_loop
from vfio_fds import memory
from vfio_guest import Client

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmuser.pci import Server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sock"


@pytest.fixture
async def device(path: Path) -> AsyncIterator[Everything]:
    device = Everything()
    async with Server(device, path):
        yield device


@pytest.fixture
async def client(device: Everything, path: Path) -> AsyncIterator[Client]:
    client = await off_loop(connect, path)
    yield client
    client.close()


@pytest.fixture
def guest_memory() -> Iterator[Descriptor]:
    with memory(1 << 20) as descriptor:
        yield descriptor
