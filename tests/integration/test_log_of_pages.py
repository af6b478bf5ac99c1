"""The log of pages that a target writes, with our patch 0080: what it has, and what a client cannot do to it."""

from __future__ import annotations

import struct

import pytest
from raw_nvme import CREATE_CQ, CREATE_SQ, MEMORY, PAGE, READ, RawNvme, read_or_write
from vfio_fds import memory
from vfio_guest import Refusal
from vfio_migration import Qemu

from nvmf_vfio.protocol import migration as wire
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DeviceFeature
from nvmf_vfio.protocol.migration import Feature, LoggingReport


def dirty(raw: RawNvme, address: int = 0, size: int = MEMORY) -> set[int]:
    """Numbers of the pages, within a map, that it has written since the last time."""
    asked = LoggingReport(address, size)
    request = DeviceFeature(8 + 24 + asked.bitmap_size, Feature.DMA_LOGGING_REPORT | wire.GET, asked.pack())
    data = DeviceFeature.unpack(raw.client.call(Command.DEVICE_FEATURE, request.pack())).data
    bits = int.from_bytes(LoggingReport.unpack(data, most=1 << 20).bitmap, "little")
    return {bit for bit in range(bits.bit_length()) if bits >> bit & 1}


def start(raw: RawNvme) -> None:
    Qemu(raw.client).feature(Feature.DMA_LOGGING_START, wire.SET, struct.pack("<QII", wire.PAGE, 0, 0))


def test_pages_that_are_read_into_and_the_queues(raw: RawNvme) -> None:
    target, other = raw.allocate(), raw.allocate()
    start(raw)
    assert dirty(raw) == set()
    assert raw.do(read_or_write(READ, 1, (target, 0)), 1).status == 0
    found = dirty(raw)
    assert target // PAGE in found
    assert other // PAGE not in found
    assert dirty(raw) == set()
    raw.disable()  # what is mapped for it is marked when it is unmapped
    queues = {raw.queues[number].completion // PAGE for number in (0, 1)}
    assert queues <= dirty(raw)


def test_a_map_that_goes_while_a_queue_is_in_another(raw: RawNvme) -> None:
    """Entries name maps by index: without the patch this one's is beyond the last, or another's."""
    size, low, high = 1 << 21, 1 << 30, 1 << 31
    with memory(size) as first, memory(size) as second:
        raw.client.map(low, size, first)
        raw.client.map(high, size, second)
        start(raw)
        entries = 31 << 16 | 2
        assert not raw.admin(CREATE_CQ, data=(high, 0), cdw10=entries, cdw11=1).status
        assert not raw.admin(CREATE_SQ, data=(high + PAGE, 0), cdw10=entries, cdw11=2 << 16 | 1).status
        raw.client.unmap(low, size)
        raw.disable()
        assert 0 in dirty(raw, high, size)


@pytest.mark.parametrize(
    ("flags", "data"),
    [
        (Feature.DMA_LOGGING_START | wire.SET, b""),
        (Feature.DMA_LOGGING_START | wire.SET, struct.pack("<QII", 1, 0, 0)),
        (Feature.DMA_LOGGING_START | wire.SET, struct.pack("<QII", 0, 0, 0)),
        (Feature.DMA_LOGGING_REPORT | wire.GET, b""),
        (Feature.DMA_LOGGING_REPORT | wire.GET, struct.pack("<QQQ", 0, MEMORY, 1)),
        (Feature.DMA_LOGGING_REPORT | wire.GET, struct.pack("<QQQ", 0, 1 << 60, wire.PAGE)),
        (Feature.DMA_LOGGING_REPORT | wire.GET, struct.pack("<QQQ", PAGE, PAGE, wire.PAGE)),
        (Feature.MIGRATION | wire.GET, b""),
    ],
)
def test_requests_that_are_refused(raw: RawNvme, flags: int, data: bytes) -> None:
    start(raw)
    request = DeviceFeature(0xFFFF, flags, data)
    with pytest.raises(Refusal):
        raw.client.call(Command.DEVICE_FEATURE, request.pack())
    assert raw.do(read_or_write(READ, 1, (raw.allocate(), 0)), 1).status == 0
