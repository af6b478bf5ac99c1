"""How much of a guest's memory SPDK's target, as patched here, takes, and data that does not lie in one piece of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bare_target import BareTarget
from raw_nvme import BLOCK, MEMORY, PAGE, READ, WRITE, RawNvme, read_or_write, serve
from vfio_fds import memory
from vfio_guest import Refusal

from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DmaMap
from nvmf_vfio.state.memory import MAX_MAPS

SUCCESS, DATA_TRANSFER_ERROR = 0x00, 0x04
SGL = 0x40


def test_as_many_maps_as_are_announced(raw: RawNvme) -> None:
    """A guest with virtio-mem maps each of its blocks; they come in any order."""
    assert raw.version.capabilities["max_dma_maps"] == MAX_MAPS
    addresses = [MEMORY + 2 * PAGE * number for number in range(MAX_MAPS - 1)]
    order = addresses[::2] + addresses[1::2][::-1]
    with memory(PAGE) as page, memory(PAGE) as other:
        for address in order:
            raw.client.map(address, PAGE, page)
        with pytest.raises(Refusal) as caught:
            raw.client.map(MEMORY + 2 * PAGE * MAX_MAPS, PAGE, other)
        assert caught.value.errno == errno.ENOSPC
        raw.client.map(addresses[7], PAGE, page)
        for address in (addresses[0], addresses[len(addresses) // 2], addresses[-1]):
            os.pwrite(page.fileno(), b"\xee" * PAGE, 0)
            assert raw.do(read_or_write(READ, 1, (address, 0)), 1).status == SUCCESS
            assert os.pread(page.fileno(), PAGE, 0) == bytes(PAGE)
            assert raw.do(read_or_write(READ, 1, (address + PAGE, 0)), 1).status == DATA_TRANSFER_ERROR
        gone = addresses[len(addresses) // 2]
        raw.client.unmap(gone, PAGE)
        assert raw.do(read_or_write(READ, 1, (gone, 0)), 1).status == DATA_TRANSFER_ERROR
        raw.client.map(gone, PAGE, other)
        assert raw.do(read_or_write(READ, 1, (gone, 0)), 1).status == SUCCESS


def test_data_in_two_regions_is_one_piece_for_the_guest(
    nvmf_target: BareTarget, tmp_path: Path, connect_raw: Callable[[Path], RawNvme]
) -> None:
    """Linux joins pages that are contiguous, also where one DIMM ends and the next begins."""
    raw = connect_raw(serve(nvmf_target, tmp_path / "c", "m"))
    raw.enable()
    raw.create_queue()
    pattern = os.urandom(4 * BLOCK)
    with memory(PAGE) as second, memory(MEMORY) as third:
        raw.client.map(MEMORY, PAGE, second)
        raw.client.map(MEMORY + PAGE, MEMORY, third)
        start = MEMORY - PAGE - 512
        raw.poke(start, pattern[: PAGE + 512])
        os.pwrite(second.fileno(), pattern[PAGE + 512 : 2 * PAGE + 512], 0)
        os.pwrite(third.fileno(), pattern[2 * PAGE + 512 :], 0)
        assert raw.do(read_or_write(WRITE, 4, (start, 4 * BLOCK), flags=SGL), 1).status == SUCCESS
        back = raw.allocate(4 * BLOCK)
        assert raw.do(read_or_write(READ, 4, (back, 4 * BLOCK), flags=SGL), 1).status == SUCCESS
        assert raw.peek(back, 4 * BLOCK) == pattern
        os.pwrite(third.fileno(), bytes(2 * PAGE), 0)
        os.pwrite(second.fileno(), bytes(PAGE), 0)
        assert raw.do(read_or_write(READ, 4, (start, 4 * BLOCK), flags=SGL), 1).status == SUCCESS
        assert raw.peek(start, PAGE + 512) == pattern[: PAGE + 512]
        assert os.pread(second.fileno(), PAGE, 0) == pattern[PAGE + 512 : 2 * PAGE + 512]
        assert os.pread(third.fileno(), 2 * PAGE, 0) == pattern[2 * PAGE + 512 :].ljust(2 * PAGE, b"\0")
        beyond = 2 * MEMORY + PAGE - 512
        assert raw.do(read_or_write(READ, 1, (beyond, BLOCK), flags=SGL), 1).status == DATA_TRANSFER_ERROR


def test_a_guests_read_only_memory_can_be_written_from(raw: RawNvme) -> None:
    """Its ROM, for one; nothing is read into it."""
    with memory(PAGE) as rom:
        os.pwrite(rom.fileno(), b"\x42" * PAGE, 0)
        raw.client.call(Command.DMA_MAP, DmaMap(DmaMap.READ, 0, MEMORY, PAGE).pack(), [rom])
        assert raw.do(read_or_write(WRITE, 1, (MEMORY, 0)), 1).status == SUCCESS
        assert raw.do(read_or_write(READ, 1, (MEMORY, 0)), 1).status == DATA_TRANSFER_ERROR
        back = raw.allocate()
        assert raw.do(read_or_write(READ, 1, (back, 0)), 1).status == SUCCESS
        assert raw.peek(back, PAGE) == b"\x42" * PAGE
