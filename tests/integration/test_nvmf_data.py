"""How SPDK's target, as patched here, finds the data of commands: PRPs and SGLs of every shape, right and wrong."""

from __future__ import annotations

import struct

import pytest
from raw_nvme import BLOCK, PAGE, READ, WRITE, RawNvme, read_or_write

from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import RegionInfo
from nvmf_vfio.state.registers import BAR0, Register

SUCCESS, INVALID_FIELD, DATA_TRANSFER_ERROR = 0x00, 0x02, 0x04
BAD_SEGMENT, BAD_COUNT, BAD_LENGTH, BAD_TYPE, BAD_PRP_OFFSET = 0x0D, 0x0E, 0x0F, 0x11, 0x13
SGL = 0x40
DATA_BLOCK, SEGMENT, LAST_SEGMENT = 0x00, 0x20, 0x30


def test_bar0_is_as_large_as_windows_wants(raw: RawNvme) -> None:
    """16 KiB: the low 14 bits of MLBAR are reserved. What lies behind the doorbells is reserved too."""
    info = RegionInfo.unpack(raw.client.call(Command.DEVICE_GET_REGION_INFO, RegionInfo(32, 0, BAR0).pack()))
    assert info.size == 0x4000
    raw.client.write(0x3FFC, 4, 0xFFFFFFFF)
    assert raw.client.read(0x3FFC, 4) == 0
    assert raw.client.read(Register.VS, 4) >= 0x10300


# -- data ------------------------------------------------------------------------------------------------------------


def written(raw: RawNvme, blocks: int, lba: int = 0) -> bytes:
    """Write a pattern from one contiguous buffer by a PRP list of its own; the pattern."""
    pattern = b"".join(struct.pack("<Q", lba * BLOCK + at) for at in range(0, blocks * BLOCK, 8))
    address = raw.allocate(blocks * BLOCK)
    raw.poke(address, pattern)
    assert raw.do(read_or_write(WRITE, blocks, prps(raw, address, blocks * BLOCK), lba=lba), 1).status == SUCCESS
    return pattern


def prps(raw: RawNvme, address: int, size: int, *, list_offset: int = 0) -> tuple[int, int]:
    """PRP1 and PRP2 for a contiguous buffer.

    :param list_offset: a list begins so many bytes into its page, and goes on in others as it must.
    """
    pages = list(range(address - address % PAGE + PAGE, address + size, PAGE))
    if len(pages) < 2:
        return address, pages[0] if pages else 0
    first = at = raw.allocate() + list_offset
    for index, page in enumerate(pages):
        if at % PAGE == PAGE - 8 and index < len(pages) - 1:
            chained = raw.allocate()
            raw.poke(at, struct.pack("<Q", chained))
            at = chained
        raw.poke(at, struct.pack("<Q", page))
        at += 8
    return address, first


@pytest.mark.parametrize("list_offset", [0, 8, PAGE - 256, PAGE - 64, PAGE - 16, PAGE - 8])
@pytest.mark.parametrize("into_page", [0, 512, PAGE - 4])
def test_prp_lists_may_begin_anywhere_in_a_page(raw: RawNvme, list_offset: int, into_page: int) -> None:
    pattern = written(raw, 32)
    buffer = raw.allocate(33 * PAGE + PAGE)
    raw.poke(buffer, b"\xee" * (34 * PAGE))
    entry = read_or_write(READ, 32, prps(raw, buffer + into_page, 32 * BLOCK, list_offset=list_offset))
    assert raw.do(entry, 1).status == SUCCESS
    assert raw.peek(buffer + into_page, 32 * BLOCK) == pattern
    assert raw.peek(buffer, into_page) == b"\xee" * into_page
    assert raw.peek(buffer + into_page + 32 * BLOCK, 100) == b"\xee" * 100


def test_wrong_prps_are_refused_one_by_one(raw: RawNvme) -> None:
    buffer = raw.allocate(4 * PAGE)
    lists = raw.allocate()
    raw.poke(lists, struct.pack("<QQ", buffer + PAGE, buffer + 2 * PAGE + 8))
    nowhere = 1 << 40
    for blocks, data, status in [
        (2, (buffer, buffer + PAGE + 8), BAD_PRP_OFFSET),
        (3, (buffer, lists + 4), BAD_PRP_OFFSET),
        (3, (buffer, lists), BAD_PRP_OFFSET),
        (2, (buffer, nowhere), DATA_TRANSFER_ERROR),
        (3, (buffer, nowhere), DATA_TRANSFER_ERROR),
        (1, (nowhere, 0), DATA_TRANSFER_ERROR),
        (1, ((1 << 64) - PAGE, 0), DATA_TRANSFER_ERROR),
        (1, ((1 << 64) - 8, buffer), DATA_TRANSFER_ERROR),
        (33, prps(raw, raw.allocate(33 * BLOCK), 33 * BLOCK), INVALID_FIELD),
        (0x10000, (buffer, lists), INVALID_FIELD),
    ]:
        assert raw.do(read_or_write(READ, blocks, data), 1).status == status, (blocks, data)


def sgl(kind: int, address: int, length: int) -> bytes:
    return struct.pack("<QI3xB", address, length, kind)


def segment(raw: RawNvme, *descriptors: bytes) -> int:
    """The address of a segment."""
    address = raw.allocate(16 * len(descriptors))
    raw.poke(address, b"".join(descriptors))
    return address


def by_sgl(opcode: int, blocks: int, descriptor: bytes) -> bytes:
    first, second = struct.unpack("<QQ", descriptor)
    return read_or_write(opcode, blocks, (first, second), flags=SGL)


def test_sgls_of_every_shape(raw: RawNvme) -> None:
    pattern = written(raw, 3)
    buffer = raw.allocate(8 * PAGE)
    pieces = [(buffer + 100, 5000), (buffer + 3 * PAGE, 1), (buffer + 6 * PAGE - 7, 3 * BLOCK - 5001)]
    data = [sgl(DATA_BLOCK, *piece) for piece in pieces]
    last = segment(raw, data[1], sgl(DATA_BLOCK, 0, 0), data[2])
    chained = segment(raw, data[0], sgl(LAST_SEGMENT, last, 48))
    whole = sgl(DATA_BLOCK, buffer + 4, 3 * BLOCK)
    for descriptor, parts in [
        (whole, [(buffer + 4, 3 * BLOCK)]),
        (sgl(LAST_SEGMENT, segment(raw, *data), 48), pieces),
        (sgl(SEGMENT, chained, 32), pieces),
    ]:
        raw.poke(buffer, b"\xee" * (8 * PAGE))
        assert raw.do(by_sgl(READ, 3, descriptor), 1).status == SUCCESS
        assert b"".join(raw.peek(*part) for part in parts) == pattern
        touched = sum(length for _, length in parts)
        assert raw.peek(buffer, 8 * PAGE).count(b"\xee") >= 8 * PAGE - touched


def test_wrong_sgls_are_refused_one_by_one(raw: RawNvme) -> None:
    """A chain without end, in particular, once wrote past the end of the request."""
    buffer = raw.allocate(4 * PAGE)
    endless = raw.allocate()
    raw.poke(endless, sgl(SEGMENT, endless, 16))
    many = segment(raw, *[sgl(DATA_BLOCK, buffer, 1)] * 60)
    growing = raw.allocate()
    raw.poke(growing, sgl(DATA_BLOCK, buffer, 1) + sgl(SEGMENT, growing, 32))
    bit_bucket = segment(raw, sgl(0x10, 0, BLOCK))
    for descriptor, status in [
        (sgl(SEGMENT, endless, 16), BAD_COUNT),
        (sgl(SEGMENT, growing, 32), BAD_COUNT),
        (sgl(LAST_SEGMENT, many, 60 * 16), BAD_COUNT),
        (sgl(LAST_SEGMENT, endless, 0), BAD_SEGMENT),
        (sgl(LAST_SEGMENT, endless, 17), BAD_SEGMENT),
        (sgl(LAST_SEGMENT, endless, 16), BAD_SEGMENT),
        (sgl(LAST_SEGMENT, bit_bucket, 16), BAD_TYPE),
        (sgl(0x50, buffer, BLOCK), BAD_TYPE),
        (sgl(DATA_BLOCK, buffer, BLOCK - 1), BAD_LENGTH),
        (sgl(DATA_BLOCK, buffer, 2 * BLOCK), BAD_LENGTH),
        (sgl(DATA_BLOCK, buffer, 0xFFFFFFFF), BAD_LENGTH),
        (sgl(LAST_SEGMENT, segment(raw, sgl(DATA_BLOCK, buffer, 8)), 16), BAD_LENGTH),
        (sgl(DATA_BLOCK, 1 << 40, BLOCK), DATA_TRANSFER_ERROR),
        (sgl(SEGMENT, 1 << 40, 16), DATA_TRANSFER_ERROR),
    ]:
        assert raw.do(by_sgl(READ, 1, descriptor), 1).status == status, descriptor.hex()
    assert raw.do(by_sgl(READ, 1, sgl(DATA_BLOCK, buffer, BLOCK)), 1).status == SUCCESS
