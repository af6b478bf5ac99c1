"""The codec: what is packed is what is unpacked, and nonsense is a ProtocolError."""

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmf_vfio.protocol.header import MAX_MESSAGE, Command, Flag, Header, ProtocolError
from nvmf_vfio.protocol.messages import (
    DeviceFeature,
    DeviceInfo,
    DmaAccess,
    DmaMap,
    DmaUnmap,
    IrqInfo,
    MigData,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    RegionWriteMulti,
    Reset,
    SetIrqs,
    decode_request,
)
from nvmf_vfio.protocol.version import Version

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
u63 = st.integers(0, (1 << 62) - 1)
data = st.binary(min_size=1, max_size=64)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(1 << 53), 1 << 53), st.text(max_size=8))

ROUND_TRIPS = {
    Command.VERSION: st.builds(Version, u16, u16, st.dictionaries(st.text(max_size=8), scalars, max_size=8)),
    Command.DMA_MAP: st.builds(DmaMap, st.integers(0, 3), u63, u63, st.integers(1, 1 << 62)),
    Command.DMA_UNMAP: st.one_of(st.builds(DmaUnmap, st.just(0), u63, u63), st.just(DmaUnmap(DmaUnmap.ALL, 0, 0))),
    Command.DEVICE_GET_INFO: st.builds(DeviceInfo, u32, u32, u32, u32),
    Command.DEVICE_GET_REGION_INFO: st.builds(RegionInfo, u32, u32, u32, u32, u63, u63, st.binary(max_size=64)),
    Command.DEVICE_GET_REGION_IO_FDS: st.integers(0, 3).flatmap(
        lambda n: st.builds(RegionIoFds, u32, u32, u32, st.just(n), st.binary(min_size=40 * n, max_size=40 * n))
    ),
    Command.DEVICE_GET_IRQ_INFO: st.builds(IrqInfo, u32, u32, u32, u32),
    Command.DEVICE_SET_IRQS: st.builds(
        SetIrqs, st.sampled_from([0x21, 0x24, 0x0C, 0x11]), st.integers(0, 4), st.integers(0, 1000), st.integers(0, 9)
    ),
    Command.REGION_READ: st.builds(RegionAccess, u63, u32, st.integers(0, 0x10000)),
    Command.REGION_WRITE: st.builds(lambda o, r, d: RegionAccess(o, r, len(d), d), u63, u32, data),
    Command.REGION_WRITE_MULTI: st.builds(
        lambda writes: RegionWriteMulti(tuple(RegionAccess(o, r, len(d), d) for o, r, d in writes)),
        st.lists(st.tuples(u63, u32, st.binary(max_size=8)), max_size=5),
    ),
    Command.DMA_READ: st.builds(DmaAccess, u63, u63),
    Command.DMA_WRITE: st.builds(lambda a, d: DmaAccess(a, len(d), d), u63, data),
    Command.DEVICE_RESET: st.just(Reset()),
    Command.DEVICE_FEATURE: st.builds(DeviceFeature, u32, u32, st.binary(max_size=64)),
    Command.MIG_DATA_READ: st.builds(MigData, u32, u32),
    Command.MIG_DATA_WRITE: st.builds(lambda a, d: MigData(a, len(d), d), u32, data),
}


@pytest.mark.parametrize("command", list(Command), ids=lambda command: command.name)
@given(st.data())
def test_round_trip(command: Command, data: st.DataObject) -> None:
    request = data.draw(ROUND_TRIPS[command])
    assert decode_request(command, request.pack()) == (command, request)


@given(u16, u16, st.integers(16, MAX_MESSAGE), st.sampled_from([0, 1, 0x10, 0x21]), u32)
def test_header_round_trip(identifier: int, command: int, size: int, flags: int, error: int) -> None:
    header = Header(identifier, command, size, flags, error)
    assert Header.unpack(header.pack(), limit=MAX_MESSAGE) == header


@pytest.mark.parametrize("command", list(Command), ids=lambda command: command.name)
@given(body=st.binary(max_size=100))
def test_arbitrary_bytes_are_a_request_or_a_protocol_error(command: Command, body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_request(command, body)


@given(st.binary(max_size=20))
def test_arbitrary_bytes_are_a_header_or_a_protocol_error(head: bytes) -> None:
    try:
        header = Header.unpack(head, limit=MAX_MESSAGE)
    except ProtocolError:
        return
    assert 16 <= header.size <= MAX_MESSAGE


@given(st.binary(max_size=200))
def test_arbitrary_capabilities(text: bytes) -> None:
    try:
        Version.unpack(bytes(4) + text)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 3000,
        b'{"capabilities":' + b'{"a":' * 900 + b"1" + b"}" * 901,
        b"1" * 5000,
        b'{"capabilities":' + b"9" * 4090,
        b"\xff\xfe{",
        b"{}x",
        b'{"capabilities": []}',
        b"[]",
    ],
)
def test_hostile_capabilities(text: bytes) -> None:
    """Nothing that cannot be packed again: the record and the next target get it."""
    with pytest.raises(ProtocolError):
        Version.unpack(bytes(4) + text)


def test_version_without_capabilities() -> None:
    assert Version.unpack(struct.pack("<HH", 0, 1)) == Version(0, 1, {})
    assert Version.unpack(struct.pack("<HH", 0, 1) + b"{}\0") == Version(0, 1, {})


def test_version_is_a_c_string_of_json() -> None:
    packed = Version(0, 1, {"max_msg_fds": 8}).pack()
    assert packed[-1] == 0
    assert json.loads(packed[4:-1]) == {"capabilities": {"max_msg_fds": 8}}


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (Command.DMA_MAP, DmaMap(3, 0, 0, 0).pack()),
        (Command.DMA_MAP, DmaMap(3, 0, (1 << 64) - 0x1000, 0x2000).pack()),
        (Command.DMA_MAP, DmaMap(3, (1 << 63) - 1, 0, 0x1000).pack()),
        (Command.DMA_MAP, DmaMap(4, 0, 0, 0x1000).pack()),
        (Command.DMA_UNMAP, DmaUnmap(2, 0, 1).pack()),
        (Command.DMA_UNMAP, DmaUnmap(1, 0, 0x1000).pack()),
        (Command.DMA_UNMAP, DmaUnmap(0, (1 << 64) - 1, 2).pack()),
        (Command.DEVICE_SET_IRQS, SetIrqs(0x24, 5, 0, 1).pack()),
        (Command.DEVICE_SET_IRQS, SetIrqs(0x24, 2, 0xFFFFFFFF, 1).pack()),
        (Command.DEVICE_SET_IRQS, SetIrqs(0x24, 2, 0, 2049).pack()),
        (Command.DEVICE_SET_IRQS, SetIrqs(0x27, 2, 0, 1).pack()),
        (Command.DEVICE_SET_IRQS, SetIrqs(0x22, 2, 0, 3, b"\0").pack()),
        (Command.REGION_WRITE, RegionAccess(0, 0, 8, b"abcd").pack()),
        (Command.REGION_WRITE, RegionAccess(0, 0, 4, b"abcdefgh").pack()),
        (Command.REGION_READ, RegionAccess(0, 0, 0xFFFFFFFF).pack()),
        (Command.REGION_READ, RegionAccess((1 << 64) - 2, 0, 4).pack()),
        (Command.REGION_WRITE_MULTI, struct.pack("<Q", (1 << 64) - 1)),
        (Command.REGION_WRITE_MULTI, struct.pack("<QQII8s", 1, 0, 0, 9, b"")),
        (Command.DEVICE_RESET, b"x"),
    ],
)
def test_what_the_specification_does_not_allow(command: Command, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(command, body)


def test_unknown_commands() -> None:
    for command in (0, 14, 19, 0xFFFF):
        with pytest.raises(ProtocolError):
            decode_request(command, b"")


def test_who_wants_a_reply() -> None:
    assert Header(1, 1, 16).wants_reply
    assert not Header(1, 1, 16, Flag.NO_REPLY).wants_reply
    assert not Header(1, 1, 16, Flag.REPLY).wants_reply
    assert Header(1, 1, 16, Flag.REPLY | Flag.ERROR).is_reply
