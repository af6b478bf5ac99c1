"""A target that an NVMe host connects to, and two of its controllers connected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from host_world import MIB, controller, rpc, slow_volume, uuid

from nvmuser import initiator
from nvmuser.rpc import methods


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BareTarget, Path]]:
    """A target that sleeps, and therefore wants doorbells: `data` (a file, and null), `slow`."""
    directory = tmp_path_factory.mktemp("host")
    backing = directory / "backing"
    with backing.open("wb") as file:
        file.truncate(64 * MIB)
    factory = TargetFactory(directory)
    try:
        target = factory.start()
        rpc(
            target,
            methods.create_transport(),
            methods.aio_create("a0", str(backing), 4096, uuid(1)),
            methods.null_create("n0", 16 * MIB, 512, uuid(2)),
            *slow_volume(),
            *controller(directory, "data", "a0", "n0"),
            *controller(directory, "slow", "slow"),
        )
        yield target, directory
        # Ending in good order, it would wait for what the slow volume still has.
        target.kill()
    finally:
        factory.end()


@pytest.fixture
def data(served: tuple[BareTarget, Path]) -> Iterator[initiator.Controller]:
    with initiator.connect(served[1] / "data") as connected:
        yield connected


@pytest.fixture
def slow(served: tuple[BareTarget, Path]) -> Iterator[initiator.Controller]:
    with initiator.connect(served[1] / "slow") as connected:
        yield connected
