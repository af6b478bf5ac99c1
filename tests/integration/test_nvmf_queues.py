"""SPDK's target, as patched here, with drivers that do with their queues what none should: it answers, and goes on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from bare_target import BareTarget
from raw_nvme import (
    ALL_NAMESPACES,
    BLOCK,
    CREATE_CQ,
    CREATE_SQ,
    DELETE_CQ,
    DELETE_SQ,
    DOORBELL_BUFFERS,
    EVENT_REQUEST,
    GET_LOG,
    IDENTIFY,
    NQN,
    READ,
    RawNvme,
    call,
    command,
    read_or_write,
    serve,
)

from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.registers import DOORBELLS

SUCCESS, INVALID_FIELD, SEQUENCE_ERROR = 0x00, 0x02, 0x0C
PCI_COMMAND, INTERRUPT_DISABLE = 4, 1 << 10
ONES = 0xFFFFFFFF
VENDOR = b"XN"
"""The PCI vendor that SPDK gives its controllers, 4E58h."""


def is_well(raw: RawNvme) -> None:
    """It answers admin commands and reads."""
    assert raw.fetch(IDENTIFY, cdw10=1)[:2] == VENDOR
    assert raw.do(read_or_write(READ, 1, (raw.allocate(), 0)), 1).status == SUCCESS


def test_a_queue_that_is_being_created_is_not_deleted(raw: RawNvme) -> None:
    """All three are fetched at once; the queue is connected only later."""
    size = 7 << 16 | 2
    names = {
        raw.put(command(CREATE_CQ, data=(raw.allocate(), 0), cdw10=size, cdw11=1)): "create cq",
        raw.put(command(CREATE_SQ, data=(raw.allocate(), 0), cdw10=size, cdw11=2 << 16 | 1)): "create sq",
        raw.put(command(DELETE_SQ, cdw10=2)): "delete sq",
    }
    raw.ring()
    statuses = {names[completion.identifier]: completion.status for completion in (raw.take() for _ in names)}
    assert statuses == {"create cq": SUCCESS, "create sq": SUCCESS, "delete sq": SEQUENCE_ERROR}
    assert raw.admin(DELETE_SQ, cdw10=2).status == SUCCESS
    is_well(raw)


def test_no_io_queues_without_entry_sizes(
    nvmf_target: BareTarget, tmp_path: Path, connect_raw: Callable[[Path], RawNvme]
) -> None:
    """CC.IOSQES and IOCQES are 0; the connection that follows the command would fail."""
    raw = connect_raw(serve(nvmf_target, tmp_path / "c", "m"))
    raw.enable(cc=1)
    assert raw.admin(CREATE_CQ, data=(raw.allocate(), 0), cdw10=7 << 16 | 1, cdw11=1).status == INVALID_FIELD
    raw.disable()
    raw.enable()
    raw.create_queue()
    is_well(raw)


def test_a_doorbell_out_of_range_stops_nobody_else(
    nvmf_target: BareTarget, tmp_path: Path, connect_raw: Callable[[Path], RawNvme]
) -> None:
    """One thread looks at the queues of all."""
    call(nvmf_target, ("bdev_malloc_create", {"name": "other", "num_blocks": 1024, "block_size": BLOCK}))
    bad = connect_raw(serve(nvmf_target, tmp_path / "bad", "m"))
    good = connect_raw(serve(nvmf_target, tmp_path / "good", "other", nqn=f"{NQN}.good"))
    for raw in (bad, good):
        raw.enable()
        raw.create_queue()
    for number in (0, 1):
        bad.client.write(DOORBELLS + 8 * number, 4, 0xFFFF)
    is_well(good)


@pytest.mark.parametrize("into_page", [0, 4092])
def test_a_log_page_as_long_as_memory(raw: RawNvme, into_page: int) -> None:
    """Its length in bytes all but wraps; once the walk through its pages did."""
    for dwords in (ONES, 0x3FFFFFFE, 0x3FFFFFFD, 0x10000, 32 * 1024):
        page = command(
            GET_LOG,
            ALL_NAMESPACES,
            data=(raw.allocate() + into_page, raw.allocate()),
            cdw10=(dwords & 0xFFFF) << 16 | 2,
            cdw11=dwords >> 16,
        )
        assert raw.do(page).status == INVALID_FIELD, hex(dwords)
    is_well(raw)


@pytest.mark.parametrize("queue", [0, 1])
@pytest.mark.parametrize("word", [0, 0x80000001, ONES])
def test_every_opcode_is_answered(raw: RawNvme, queue: int, word: int) -> None:
    """Whatever the arguments are. What would delete the queue, or never be answered, is left out."""
    left_out = {EVENT_REQUEST, DELETE_SQ, DELETE_CQ} if queue == 0 else set()
    words = {f"cdw{number}": word for number in range(10, 16)}
    buffer = raw.allocate()
    for opcode in sorted(set(range(256)) - left_out):
        for nsid, flags in ((0, 0), (1, 0), (1, 0x40), (2, 0xC0), (ALL_NAMESPACES, 0x03)):
            raw.do(command(opcode, nsid, flags=flags, data=(buffer, word), **words), queue)
    assert raw.fetch(IDENTIFY, cdw10=1)[:2] == VENDOR


def test_a_disabled_controller_takes_no_commands(raw: RawNvme) -> None:
    """With shadow doorbells those in BAR0 are old: what lies between such a tail and the head has been taken before."""
    raw.client.write(PCI_COMMAND, 2, 0x6 | INTERRUPT_DISABLE, CONFIG)
    shadows, data = raw.allocate(), raw.allocate()
    assert raw.admin(DOORBELL_BUFFERS, data=(shadows, raw.allocate())).status == SUCCESS
    queue = raw.queues[1]
    for _ in range(10):
        raw.put(read_or_write(READ, 1, (data, 0)), 1)
        raw.poke(shadows + 8, struct.pack("<I", queue.tail))
        raw.fetch(IDENTIFY, cdw10=1)  # a target that sleeps looks at all queues then
        assert raw.take(1, acknowledge=False).status == SUCCESS
        raw.poke(shadows + 12, struct.pack("<I", queue.head))
    raw.disable()
    assert raw.pending(1) is None
    raw.queues.clear()
    raw.enable()
    raw.create_queue()
    is_well(raw)
