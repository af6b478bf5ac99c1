"""The document of a controller that migrates: whole, and in every way that somebody else might write it."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmf_vfio.migration import document
from nvmf_vfio.migration.dirty import DirtyLog
from nvmf_vfio.migration.document import Arrival, pack, unpack
from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.lifecycle import Phase
from nvmf_vfio.state.memory import Refused
from nvmf_vfio.state.registers import Register

IDENTITY = {"nqn": "nqn.2026-11.org.nvmuser:c", "serial": "NU1", "namespaces": [{"nsid": 1, "size": 1 << 30}]}
EVENT_REQUEST = (b"\x0c\0\5\0" + bytes(60)).hex()
ADMIN = {"tail": 1, "head": 0, "phase": 1, "commands": [EVENT_REQUEST], "history": [], "event_requested": True}
ARRIVAL = Arrival(0x460001, 0x001F001F, 0x1000, 0x2000, 0, Phase.FAILED, True, True, ADMIN)
BODY: dict[str, Any] = json.loads(pack(ARRIVAL, IDENTITY)[12:])


def packed(body: object) -> bytes:
    text = json.dumps(body).encode()
    return struct.pack("<8sI", b"nvmuser\x01", len(text)) + text


def test_whole() -> None:
    data = pack(ARRIVAL, IDENTITY)
    assert unpack(data, IDENTITY) == ARRIVAL
    assert [document.is_whole(data[:size]) for size in (0, 5, 12, len(data) - 1)] == [False] * 4
    assert document.is_whole(data)


WRONG = {
    "cc": [-1, 1 << 32, True, 1.0, None, "1", 0x460000],
    "asq": [1 << 64, []],
    "aqa": [{}, 0],
    "phase": ["live", "idle", "", 1, None, []],
    "seen_ready": [1, None],
    "identity": [None, {}, {**IDENTITY, "serial": "NU2"}, {**IDENTITY, "more": 1}],
    "admin": [None, {}, *({**ADMIN, "tail": tail} for tail in (-1, 32, True, "0"))]
    + [{**ADMIN, "phase": 2}, {**ADMIN, "event_requested": 1}, {**ADMIN, "more": 1}]
    + [{**ADMIN, "commands": wrong} for wrong in ("", {}, [1], ["00"], ["zz" * 64], [" 0" * 64], ["00" * 64] * 257)]
    + [{**ADMIN, "history": [EVENT_REQUEST]}, {**ADMIN, "history": ["01" * 64] * 4097}],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_field_that_is_wrong(field: str, value: object) -> None:
    with pytest.raises(Refused):
        unpack(packed({**BODY, field: value}), IDENTITY)


@pytest.mark.parametrize(
    "data",
    [
        b"other format",
        pack(ARRIVAL, IDENTITY)[:-1],
        pack(ARRIVAL, IDENTITY) + b"\0",
        struct.pack("<8sI", b"nvmuser\x02", 2) + b"{}",
        struct.pack("<8sI", b"nvmuser\x01", 0xFFFFFFFF),
        struct.pack("<8sI", b"nvmuser\x01", 4) + b"\xff\xfe{}",
        packed([]),
        packed({name: value for name, value in BODY.items() if name != "intms"}),
        struct.pack("<8sI", b"nvmuser\x01", 100_000) + b"[" * 100_000,
    ],
)
def test_no_document(data: bytes) -> None:
    with pytest.raises(Refused):
        unpack(data, IDENTITY)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NEARLY = st.tuples(st.sampled_from(sorted(BODY)), VALUES).map(lambda change: packed({**BODY, change[0]: change[1]}))
ADMINS = st.tuples(st.sampled_from(sorted(ADMIN)), VALUES | st.lists(st.just(EVENT_REQUEST), max_size=300)).map(
    lambda change: packed({**BODY, "admin": {**ADMIN, change[0]: change[1]}})
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(pack(ARRIVAL, IDENTITY))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


def judge(data: bytes) -> None:
    """Refused, or a controller that can be one."""
    try:
        arrival = unpack(data, IDENTITY)
    except Refused:
        return
    controller = Controller()
    registers = {Register.CC: arrival.cc, Register.AQA: arrival.aqa, Register.ASQ: arrival.asq}
    lifecycle = {"phase": arrival.phase, "seen_ready": arrival.seen_ready, "io_started": arrival.io_started}
    controller.arrive(registers, lifecycle, arrival.admin)
    controller.target_ready()
    assert len(controller.admin.commands) <= 256


HOSTILE = st.binary(max_size=64) | NEARLY | ADMINS | damaged()


@given(HOSTILE)
@settings(max_examples=500, deadline=None)
def test_whatever_comes_is_judged(data: bytes) -> None:
    judge(data)


@pytest.mark.matrix
@given(HOSTILE)
@settings(max_examples=100_000, deadline=None)
def test_whatever_comes_is_judged_at_length(data: bytes) -> None:
    judge(data)


# -- the log ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 1 << 28)), max_size=5),
    st.integers(0, 1 << 18),
    st.integers(1, 1 << 17),
)
@settings(max_examples=100, deadline=None)
def test_the_log_has_the_pages_that_were_written(writes: list[tuple[int, int]], first: int, count: int) -> None:
    log = DirtyLog()
    log.mark(0, 1)
    log.start()
    for address, size in writes:
        log.mark(address, size)
    expected = 0
    for address, size in writes:
        low, high = max(address >> 12, first), min((address + size - 1 >> 12) + 1, first + count)
        expected |= ((1 << high - low) - 1) << low - first if low < high else 0
    report = log.report(first << 12, count << 12)
    assert len(report) == -(-count // 64) * 8
    assert int.from_bytes(report, "little") == expected
    assert not any(log.report(first << 12, count << 12))


def test_a_log_that_is_off_has_nothing() -> None:
    log = DirtyLog()
    log.start()
    log.mark(0, 4096)
    log.stop()
    log.start()
    assert not any(log.report(0, 1 << 20))


@given(
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 1 << 28)), max_size=5),
    st.integers(0, 1 << 18),
    st.integers(0, 1 << 17),
)
@settings(max_examples=100, deadline=None)
def test_a_log_takes_in_what_another_reports(writes: list[tuple[int, int]], first: int, count: int) -> None:
    log, other = DirtyLog(), DirtyLog()
    for one in (log, other):
        one.start()
    for address, size in writes:
        other.mark(address, size)
    found = other.report(first << 12, count << 12)
    log.mark(first << 12, 1)
    log.merge(first << 12, found)
    expected = int.from_bytes(found, "little") | 1
    assert int.from_bytes(log.report(first << 12, count + 1 << 12), "little") == expected
    assert not any(log.report(0, 1 << 32))


def test_a_log_that_is_off_takes_nothing_in() -> None:
    log = DirtyLog()
    log.merge(0, b"\1")
    log.start()
    assert not any(log.report(0, 1 << 20))
