"""The ladder of fixtures: a bare target first, everything else on top of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from hypothesis import settings

from nvmuser.bench.measure import ceph_cluster
from nvmuser.bench.measure.ceph_cluster import CephCluster
from nvmuser.toolchain import find_spdk
from nvmuser.toolchain.rbd import find_module

settings.register_profile("nvmuser", deadline=None)
settings.load_profile("nvmuser")  # a loaded machine is no fault

# A shell's background jobs ignore it, and so would what the tests start, and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def target_factory(tmp_path: Path) -> Iterator[TargetFactory]:
    """Bare targets, as many as the test starts."""
    factory = TargetFactory(tmp_path)
    yield factory
    factory.end()


@pytest.fixture
def spdk_target(target_factory: TargetFactory) -> BareTarget:
    """One bare target that answers."""
    return target_factory.start()


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    """A real cluster, for all tests."""
    find_module(find_spdk().prefix)
    with ceph_cluster.running(tmp_path_factory.mktemp("ceph")) as cluster:
        yield cluster
