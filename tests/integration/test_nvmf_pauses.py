"""A pause of an NVM subsystem waits for what is outstanding, for all of it, and for nothing that cannot come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from raw_nvme import (
    ABORT,
    BLOCK,
    COMPARE,
    DELETE_SQ,
    EVENT_REQUEST,
    FLUSH,
    NQN,
    READ,
    SET_FEATURES,
    RawNvme,
    call,
    command,
    read_or_write,
    serve,
)
from vfio_fds import memory

from nvmf_vfio.state.registers import CSTS_RDY, Register
from nvmuser.rpc import Client

SUCCESS, MISSING_FUSED, SEQUENCE_ERROR = 0x00, 0x0A, 0x0C
FUSED_FIRST = 1
KEEP_ALIVE_TIMER = 0x0F
ELSEWHERE, SIZE = 1 << 30, 1 << 20
FAR_NQN = "nqn.2026-11.org.nvmuser:far"


@pytest.fixture
def slow(nvmf_target: BareTarget, tmp_path: Path, connect_raw: Callable[[Path], RawNvme]) -> RawNvme:
    """Namespaces 1 and 2 take a while, 2 the longer; 3 answers at once. Memory that no queue is in lies ELSEWHERE."""
    for name, microseconds in (("s1", 200_000), ("s2", 600_000)):
        latencies = {f"{a}_{b}_latency": microseconds for a in ("avg", "p99") for b in ("read", "write")}
        call(
            nvmf_target,
            ("bdev_malloc_create", {"name": f"m{name}", "num_blocks": 1024, "block_size": BLOCK}),
            ("bdev_delay_create", {"name": name, "base_bdev_name": f"m{name}", **latencies}),
        )
    raw = connect_raw(serve(nvmf_target, tmp_path / "c", "s1", "s2", "m"))
    raw.enable()
    raw.create_queue()
    with memory(SIZE) as elsewhere:
        raw.client.map(ELSEWHERE, SIZE, elsewhere)
    return raw


def reading(raw: RawNvme, *nsids: int) -> None:
    """Reads into ELSEWHERE are outstanding."""
    for nsid in nsids:
        raw.put(read_or_write(READ, 1, (ELSEWHERE, 0), nsid=nsid), 1)
    assert raw.do(command(FLUSH, 3), 1).status == SUCCESS, "what lies before it in the queue has been fetched"


def done(raw: RawNvme, count: int) -> bool:
    """So many more commands have been completed."""
    queue = raw.queues[1]
    entries = [raw.peek(queue.completion + 16 * (queue.head + number), 16) for number in range(count)]
    return all(entry[14] & 1 == queue.phase for entry in entries)


def do(raw: RawNvme, entry: bytes) -> None:
    """Send a command whose completion is not waited for."""
    raw.put(entry, 1)
    raw.ring(1)


def test_memory_is_unmapped_when_no_read_goes_there_any_more(slow: RawNvme) -> None:
    reading(slow, 1, 2)
    slow.client.unmap(ELSEWHERE, SIZE)
    assert done(slow, 2)
    assert [slow.take(1).status for _ in range(2)] == [SUCCESS, SUCCESS]


async def test_also_while_another_pause_waits_for_another_namespace(nvmf_target: BareTarget, slow: RawNvme) -> None:
    reading(slow, 1, 2)
    async with await Client.connect(nvmf_target.rpc_socket) as rpc:
        removal = asyncio.create_task(rpc.call("nvmf_subsystem_remove_ns", {"nqn": NQN, "nsid": 1}))
        await asyncio.sleep(0)
        await rpc.call("spdk_get_version")  # what was sent before has begun
        await asyncio.to_thread(slow.client.unmap, ELSEWHERE, SIZE)
        assert done(slow, 2)
        await removal


@pytest.fixture
def fused(raw: RawNvme) -> RawNvme:
    """Queue 1 has the first command of a fused pair, whose second does not come."""
    raw.create_queue(2)
    do(raw, command(COMPARE, 1, flags=FUSED_FIRST, data=(raw.allocate(), 0)))
    assert raw.do(command(FLUSH, 1), 2).status == SUCCESS, "all queues have been looked at"
    return raw


def test_half_a_fused_pair_does_not_hold_up_changes_of_its_namespace(nvmf_target: BareTarget, fused: RawNvme) -> None:
    call(nvmf_target, ("nvmf_subsystem_remove_ns", {"nqn": NQN, "nsid": 1}))
    assert fused.take(1).status == MISSING_FUSED


def test_half_a_fused_pair_does_not_hold_up_memory(fused: RawNvme) -> None:
    with memory(SIZE) as elsewhere:
        fused.client.map(ELSEWHERE, SIZE, elsewhere)
    assert fused.take(1).status == MISSING_FUSED
    assert fused.do(read_or_write(READ, 1, (fused.allocate(), 0)), 1).status == SUCCESS


def test_half_a_fused_pair_does_not_hold_up_its_queues_deletion(fused: RawNvme) -> None:
    assert fused.admin(DELETE_SQ, cdw10=1).status == SUCCESS
    assert fused.take(1, acknowledge=False).status == MISSING_FUSED


def test_half_a_fused_pair_does_not_hold_up_the_next_guest(
    fused: RawNvme, tmp_path: Path, connect_raw: Callable[[Path], RawNvme]
) -> None:
    fused.client.close()
    connect_raw(tmp_path / "c/cntrl").enable()


# -- what the admin queue has outstanding ------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped(target: BareTarget) -> Iterator[None]:
    """It does nothing meanwhile."""
    os.kill(target.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(target.process.pid, signal.SIGCONT)


@dataclass
class Remote:
    """A target, polled as NVMe/TCP wants it, whose bdev `f1n1` is a namespace of `far`."""

    near: BareTarget
    far: BareTarget


@pytest.fixture
def remote(target_factory: TargetFactory) -> Remote:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port}
    far, near = target_factory.start("far"), target_factory.start("near", polled=True)
    call(
        far,
        ("nvmf_create_transport", {"trtype": "TCP"}),
        ("bdev_malloc_create", {"name": "m", "num_blocks": 1024, "block_size": BLOCK}),
        ("nvmf_create_subsystem", {"nqn": FAR_NQN, "allow_any_host": True}),
        ("nvmf_subsystem_add_ns", {"nqn": FAR_NQN, "namespace": {"bdev_name": "m"}}),
        ("nvmf_subsystem_add_listener", {"nqn": FAR_NQN, "listen_address": where}),
    )
    call(
        near,
        ("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True, "min_kato": 100, "kas": 1}),
        ("bdev_nvme_attach_controller", {"name": "f1", "subnqn": FAR_NQN, **where}),
    )
    return Remote(near, far)


def test_event_requests_while_the_admin_queue_is_being_disconnected(remote: Remote, tmp_path: Path) -> None:
    """The host let its keep-alive time pass; the queue waits for an abortion that takes long."""
    raw = RawNvme(serve(remote.near, tmp_path / "c", "f1n1"))
    raw.enable()
    raw.create_queue()
    with stopped(remote.far):
        read = raw.put(read_or_write(READ, 1, (raw.allocate(), 0)), 1)
        raw.ring(1)
        raw.put(command(ABORT, cdw10=read << 16 | 1))
        assert raw.admin(SET_FEATURES, cdw10=KEEP_ALIVE_TIMER, cdw11=1).status == SUCCESS
        raw.until(lambda: not raw.client.read(Register.CSTS, 4) & CSTS_RDY)
        raw.put(command(EVENT_REQUEST))
        raw.ring()
        assert raw.take().status == SEQUENCE_ERROR
    raw.close()
    call(
        remote.near,
        ("bdev_null_create", {"name": "more", "num_blocks": 1024, "block_size": 512}),
        ("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "more"}}),
    )
