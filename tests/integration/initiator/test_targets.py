"""Targets of other kinds than the shared one: mapped doorbells, polling, one that dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from bare_target import TargetFactory
from host_world import MIB, controller, rpc, slow_volume, uuid

from nvmuser import initiator
from nvmuser.errors import HostConnectionError
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request


def test_mapped_doorbells(target_factory: TargetFactory, tmp_path: Path) -> None:
    """A target whose BAR0 can be mapped: neither messages nor shadow doorbells."""
    target = target_factory.start(polled=True)
    null = methods.null_create("n0", 16 * MIB, 512, uuid(2))
    rpc(target, Request("nvmf_create_transport", {"trtype": "VFIOUSER"}), null, *controller(tmp_path, "c0", "n0"))
    with initiator.connect(tmp_path / "c0") as mapped, mapped.queue(4, timeout=10) as queue:
        assert not mapped.identify().shadow_doorbells
        queue.wait([queue.read(mapped.namespace(1), n, bytearray(512)) for n in range(50)])
    target.kill()


def test_a_polling_target_is_sent_no_doorbells(target_factory: TargetFactory, tmp_path: Path) -> None:
    """Not when queues wrap around either: 25 times here, which would be 50 messages."""
    target = target_factory.start(polled=True)
    null = methods.null_create("n0", 16 * MIB, 512, uuid(2))
    rpc(target, methods.create_transport(), null, *controller(tmp_path, "c0", "n0"))
    with initiator.connect(tmp_path / "c0") as trapped, trapped.queue(64, timeout=10) as queue:
        namespace, buffer = trapped.namespace(1), initiator.allocate(512)
        queue.wait([queue.read(namespace, n, buffer) for n in range(64)])
        before = asyncio.run(target.messages_taken())
        for _ in range(100):
            queue.wait([queue.read(namespace, n, buffer) for n in range(64)])
        assert asyncio.run(target.messages_taken()) - before < 5, "the admin queue has doorbells"
    target.kill()


def test_a_target_that_dies(target_factory: TargetFactory, tmp_path: Path) -> None:
    target = target_factory.start()
    rpc(target, methods.create_transport(), *slow_volume(), *controller(tmp_path, "c0", "slow"))

    async def awaited(controller: initiator.Controller) -> list[object]:
        async with controller.async_queue(2) as queue:
            reads = [queue.read(controller.namespace(1), 0, bytearray(512)) for _ in range(3)]
            await asyncio.sleep(0)
            target.kill()
            return list(await asyncio.gather(*reads, return_exceptions=True))

    with initiator.connect(tmp_path / "c0") as controller_, controller_.queue(2, timeout=20) as queue:
        request = queue.read(controller_.namespace(1), 0, bytearray(512))
        outcomes = asyncio.run(awaited(controller_))
        assert [type(outcome) for outcome in outcomes] == [HostConnectionError] * 3
        with pytest.raises(HostConnectionError):
            request.wait()
        with pytest.raises(HostConnectionError):
            controller_.namespaces()
