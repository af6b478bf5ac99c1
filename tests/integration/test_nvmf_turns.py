"""Queues have turns: one that is full does not keep the core of its target for as long as all of its commands take."""

from __future__ import annotations

import os
import signal
import struct
import time
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory
from raw_nvme import BLOCK, DELETE_CQ, DELETE_SQ, PAGE, READ, WRITE, RawNvme, call, read_or_write, serve
from vfio_fds import PATIENCE

from nvmf_vfio.state.registers import DOORBELLS

ENTRIES = 256
WRITES = ENTRIES - 1
"""As many as a queue holds."""
BLOCKS = 32
"""128 KiB."""
QUEUES = 24


def data(raw: RawNvme, content: bytes) -> tuple[int, int]:
    """PRP1 and PRP2 of 128 KiB, all pages of them the same one."""
    page, pages = raw.allocate(), raw.allocate()
    raw.poke(page, content * PAGE)
    raw.poke(pages, struct.pack("<Q", page) * (BLOCKS - 1))
    return page, pages


@pytest.mark.parametrize("polled", [True, False])
def test_a_full_queue_lets_others_have_their_turn(target_factory: TargetFactory, tmp_path: Path, polled: bool) -> None:
    """A read that comes last of all is carried out before the last of many writes: it does not see what that wrote."""
    target = target_factory.start(polled=polled)
    call(
        target,
        ("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True}),
        ("bdev_malloc_create", {"name": "m", "num_blocks": 4096, "block_size": BLOCK}),
    )
    raw = RawNvme(serve(target, tmp_path / "c", "m"))
    try:
        raw.enable()
        raw.create_queue(1, ENTRIES)
        raw.create_queue(2)
        first, last, buffer = data(raw, b"\x11"), data(raw, b"\x22"), raw.allocate()
        for _ in range(WRITES - 1):
            raw.put(read_or_write(WRITE, BLOCKS, first), 1)
        raw.put(read_or_write(WRITE, BLOCKS, last), 1)
        raw.put(read_or_write(READ, 1, (buffer, 0)), 2)
        # One of them alone: a queue that is busy has its turn before one that was idle.
        raw.client.post(DOORBELLS + 8, 4, 1)
        assert not raw.take(1, acknowledge=False).status
        # Stopped, the target finds both doorbells rung when it looks again.
        os.kill(target.process.pid, signal.SIGSTOP)
        for number in (1, 2):
            raw.client.post(DOORBELLS + 8 * number, 4, raw.queues[number].tail)
        os.kill(target.process.pid, signal.SIGCONT)
        assert not raw.take(2).status
        assert raw.peek(buffer, 1) == b"\x11"
        assert not any(raw.take(1, acknowledge=False).status for _ in range(WRITES - 1))
        assert not raw.do(read_or_write(READ, 1, (buffer, 0)), 2).status
        assert raw.peek(buffer, 1) == b"\x22"
    finally:
        raw.close()


def idle_queues(target: BareTarget) -> int:
    """How many queues are looked at in turns."""
    (found,) = call(target, ("nvmf_get_stats", {}))
    return sum(one.get("idle_sqs", 0) for group in found["poll_groups"] for one in group["transports"])


def until_idle(target: BareTarget, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while (found := idle_queues(target)) != count:
        assert time.monotonic() < deadline, f"{found} idle queues, not {count}"


def test_idle_queues_are_served_too(target_factory: TargetFactory, tmp_path: Path) -> None:
    """More of them than are looked at in one round; some are deleted, and made again."""
    target = target_factory.start(polled=True)
    call(
        target,
        ("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True}),
        ("bdev_malloc_create", {"name": "m", "num_blocks": 4096, "block_size": BLOCK}),
    )
    raw = RawNvme(serve(target, tmp_path / "c", "m"))
    queues = range(1, QUEUES + 1)
    try:
        raw.enable()
        for number in queues:
            raw.create_queue(number)
        page = raw.allocate(), 0
        for _ in range(2):
            until_idle(target, QUEUES + 1)
            for number in reversed(queues):
                assert not raw.do(read_or_write(READ, 1, page), number).status
        until_idle(target, QUEUES + 1)
        for number in queues[::3]:
            assert not raw.admin(DELETE_SQ, cdw10=number).status
            assert not raw.admin(DELETE_CQ, cdw10=number).status
        until_idle(target, QUEUES + 1 - len(queues[::3]))
        for number in queues[::3]:
            raw.create_queue(number)
            assert not raw.do(read_or_write(READ, 1, page), number).status
        until_idle(target, QUEUES + 1)
    finally:
        raw.close()
    until_idle(target, 0)
