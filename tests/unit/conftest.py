"""Fixtures of more than one file of unit tests."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from vfio_fds import descriptors_open, until
from vfio_supervisor import Supervisor
from vfio_world import World

from nvmf_vfio.endpoint import Endpoint


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    before = descriptors_open()
    endpoint, supervisor = Endpoint(tmp_path / "g", tmp_path / "t"), Supervisor()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    endpoint.connected(theirs)
    supervisor.attach(ours)
    supervisor.begin(["a", "b"])
    await until(lambda: len(endpoint._listeners) == 2)
    world = World(tmp_path, endpoint, supervisor)
    yield world
    world.close()
    assert descriptors_open() == before
