"""Deallocate: ranges of every kind, together in one command, and namespaces that have no use for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from backing import MIB, call, controller, sparse, uuid
from bare_target import BareTarget

from nvmuser import initiator
from nvmuser.errors import NvmeStatusError
from nvmuser.rpc import methods

BLOCK = 4096


def test_ranges(spdk_target: BareTarget, tmp_path: Path) -> None:
    volume = methods.aio_create("v", str(sparse(tmp_path / "v", 4 * MIB)), BLOCK, uuid(1))
    call(spdk_target, methods.create_transport(), volume, *controller(tmp_path, "c0", "v"))
    with initiator.connect(tmp_path / "c0") as connected, connected.queue(4, timeout=60) as queue:
        namespace = connected.namespace(1)
        queue.wait([queue.write(namespace, n, b"\xff" * BLOCK) for n in range(600)])
        queue.deallocate(namespace, [(2 * n, 1) for n in range(256)]).wait()
        queue.deallocate(namespace, [(513, 0), (514, 0)]).wait()
        back = initiator.allocate(BLOCK)
        for block in range(600):
            queue.read(namespace, block, back).wait()
            assert bytes(back) == (bytes(BLOCK) if block < 512 and block % 2 == 0 else b"\xff" * BLOCK), block
        for behind in ((namespace.blocks, 1), (namespace.blocks - 1, 2), ((1 << 64) - 1, 2)):
            with pytest.raises(NvmeStatusError, match="LBA OUT OF RANGE"):
                queue.deallocate(namespace, [(1, 1), behind]).wait()


def test_a_namespace_without_it(spdk_target: BareTarget, tmp_path: Path) -> None:
    """It may come when the guest has looked already: what is only a hint does not fail."""
    volume = methods.null_create("v", 4 * MIB, 512, uuid(1))
    call(spdk_target, methods.create_transport(), volume, *controller(tmp_path, "c0", "v"))
    with initiator.connect(tmp_path / "c0") as connected, connected.queue(4, timeout=60) as queue:
        assert not connected.identify().dsm
        queue.deallocate(connected.namespace(1), [(0, 8), (16, 8)]).wait()
