from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from bare_target import TargetFactory
from etcd_server import Etcd, running
from fleet_storage import StorageWorld, storage_world
from fleet_world import World, a_world

from nvmuser.bench.measure.ceph_cluster import CephCluster

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One for all that do not harm it."""
    with running(tmp_path_factory.mktemp("etcd")) as member:
        yield member


@pytest.fixture
async def world(etcd: Etcd, tmp_path: Path) -> AsyncIterator[World]:
    """A fleet of its own."""
    async with a_world(etcd.url, tmp_path, f"fleet{next(_NUMBERS)}") as world:
        yield world


@pytest.fixture
async def storage(
    tmp_path_factory: pytest.TempPathFactory, etcd: Etcd, target_factory: TargetFactory, ceph: CephCluster
) -> AsyncIterator[StorageWorld]:
    """A fleet of its own, with a remote and a real Ceph."""
    async with storage_world(tmp_path_factory.mktemp("s"), etcd, target_factory, ceph) as world:
        yield world
