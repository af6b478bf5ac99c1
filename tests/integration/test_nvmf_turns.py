"""Queues have turns: one that is full does not keep the core of its target for as long as all of its commands take."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import pytest
from bare_target import TargetFactory
from raw_nvme import BLOCK, PAGE, READ, WRITE, RawNvme, call, read_or_write, serve

from nvmf_vfio.state.registers import DOORBELLS

ENTRIES = 256
WRITES = ENTRIES - 1
"""As many as a queue holds."""
BLOCKS = 32
"""128 KiB."""


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
        # Stopped, the target finds both doorbells rung when it looks again.
        os.kill(target.process.pid, signal.SIGSTOP)
        for number in (1, 2):
            raw.client.post(DOORBELLS + 8 * number, 4, raw.queues[number].tail)
        os.kill(target.process.pid, signal.SIGCONT)
        assert not raw.take(2).status
        assert raw.peek(buffer, 1) == b"\x11"
        assert not any(raw.take(1, acknowledge=False).status for _ in range(WRITES))
        assert not raw.do(read_or_write(READ, 1, (buffer, 0)), 2).status
        assert raw.peek(buffer, 1) == b"\x22"
    finally:
        raw.close()
