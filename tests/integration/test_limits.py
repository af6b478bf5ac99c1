"""Limits of a volume: set, changed and taken away, open or not, one after the other or at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from backing import MIB, call, controller, uuid
from bare_target import BareTarget

from nvmuser import initiator
from nvmuser.errors import RpcServerError
from nvmuser.rpc import Client, methods
from nvmuser.rpc.methods import Request


def limits(target: BareTarget) -> tuple[int, int]:
    """I/O and MiB a second; 0: no limit."""
    (found,) = call(target, Request("bdev_get_bdevs", {"name": "v"}))[0]
    assigned: dict[str, Any] = found["assigned_rate_limits"]
    return assigned["rw_ios_per_sec"], assigned["rw_mbytes_per_sec"]


def change(target: BareTarget) -> None:
    for iops, mbps in ((1000, 0), (2000, 10), (0, 20), (0, 0), (0, 0), (3000, 0)):
        call(target, methods.set_limits("v", iops, mbps, 0, 0))
        assert limits(target) == (iops, mbps)


def test_of_a_volume_that_nobody_has_open(spdk_target: BareTarget) -> None:
    call(spdk_target, methods.malloc_create("v", MIB, 512, uuid(1)))
    change(spdk_target)
    call(spdk_target, methods.delete_bdev("malloc", "v"))
    with pytest.raises(RpcServerError, match="No such device"):
        call(spdk_target, methods.set_limits("v", 1000, 0, 0, 0))


def test_of_a_volume_in_use(spdk_target: BareTarget, tmp_path: Path) -> None:
    volume = methods.malloc_create("v", MIB, 512, uuid(1))
    call(spdk_target, methods.create_transport(), volume, *controller(tmp_path, "c0", "v"))
    change(spdk_target)
    with initiator.connect(tmp_path / "c0") as connected, connected.queue(4, timeout=60) as queue:
        queue.write(connected.namespace(1), 0, bytes(4096)).wait()
        change(spdk_target)
        queue.write(connected.namespace(1), 0, bytes(4096)).wait()
    change(spdk_target)


async def test_all_at_once(spdk_target: BareTarget) -> None:
    """None is refused for another that has not ended; the last one stays. A deletion among them ends them all."""
    async with await Client.connect(spdk_target.rpc_socket) as client:

        async def one(request: Request) -> None:
            await client.call(request.method, dict(request.params))

        await one(methods.malloc_create("v", MIB, 512, uuid(1)))
        wanted = [methods.set_limits("v", 1000 * n, 0, 0, 0) for n in range(8)]
        await asyncio.gather(*(one(request) for request in wanted))
        await one(methods.set_limits("v", 5000, 0, 0, 0))
        outcomes = await asyncio.gather(
            *(one(request) for request in (*wanted, methods.delete_bdev("malloc", "v"), *wanted)),
            return_exceptions=True,
        )
        assert outcomes[len(wanted)] is None
        failed = [str(outcome) for outcome in outcomes if outcome is not None]
        assert all("No such device" in text for text in failed), failed
        assert await client.call("bdev_get_bdevs", {}) == []
