"""A real target with one controller, and raw drivers that are connected to it; two targets, one the other's remote."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from raw_nvme import BLOCK, RawNvme, call, serve
from remote_pair import Pair, open_pair


@pytest.fixture
def nvmf_target(target_factory: TargetFactory) -> BareTarget:
    """With a transport as nvmuser has it, and a malloc bdev `m`."""
    target = target_factory.start()
    call(
        target,
        ("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True}),
        ("bdev_malloc_create", {"name": "m", "num_blocks": 4096, "block_size": BLOCK}),
    )
    return target


@pytest.fixture
def connect_raw(nvmf_target: BareTarget) -> Iterator[Callable[[Path], RawNvme]]:
    """Connects to a controller; what is connected is closed, and the target must have lived."""
    made: list[RawNvme] = []

    def connect(path: Path) -> RawNvme:
        made.append(RawNvme(path))
        return made[-1]

    yield connect
    for raw in made:
        raw.close()
    assert nvmf_target.process.poll() is None, nvmf_target.log.read_text()[-3000:]


@pytest.fixture
def raw(nvmf_target: BareTarget, tmp_path: Path, connect_raw: Callable[[Path], RawNvme]) -> RawNvme:
    """A driver of the malloc bdev, with one I/O queue."""
    raw = connect_raw(serve(nvmf_target, tmp_path / "c", "m"))
    raw.enable()
    raw.create_queue()
    return raw


@pytest.fixture
async def pair(tmp_path: Path, target_factory: TargetFactory) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path, target_factory) as pair:
        yield pair
