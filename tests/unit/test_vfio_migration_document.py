"""The document of a controller that migrates: whole, and in every way that somebody else might write it."""

import json
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vfio_guest import entry

from nvmf_vfio.migration import document
from nvmf_vfio.migration.dirty import DirtyLog
from nvmf_vfio.migration.document import Arrival, pack, unpack
from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.lifecycle import Phase
from nvmf_vfio.state.memory import Refused

IDENTITY = {"nqn": "nqn.2026-11.org.nvmuser:c", "serial": "NU1", "namespaces": [{"nsid": 1, "size": 1 << 30}]}
EVENT_REQUEST = (b"\x0c\0\5\0" + bytes(60)).hex()
ADMIN = {"tail": 1, "head": 0, "phase": 1, "commands": [EVENT_REQUEST], "history": [], "event_requested": True}
ARRIVAL = Arrival(0x460001, 0x001F001F, 0x1000, 0x2000, 0, Phase.FAILED, True, True, ADMIN)
BODY: dict[str, Any] = json.loads(pack(ARRIVAL, IDENTITY)[12:])
HISTORY = [
    entry(0x05, prp1=0x8000, cdw10=63 << 16 | 1, cdw11=1 << 16 | 3),
    entry(0x01, prp1=0x9000, cdw10=63 << 16 | 1, cdw11=1 << 16 | 1),
    entry(0x7C, prp1=0xA000),
]
QUEUES = {**ADMIN, "history": [one.hex() for one in HISTORY]}
RESUMABLE = replace(ARRIVAL, phase=Phase.RESUMABLE, admin=QUEUES, positions=((2, 63), (3, 1 << 16 | 63)))
RESUMABLE_BODY: dict[str, Any] = json.loads(pack(RESUMABLE, IDENTITY)[12:])


def packed(body: object) -> bytes:
    text = json.dumps(body).encode()
    return struct.pack("<8sI", b"nvmuser\x01", len(text)) + text


@pytest.mark.parametrize("arrival", [ARRIVAL, RESUMABLE])
def test_whole(arrival: Arrival) -> None:
    data = pack(arrival, IDENTITY)
    assert unpack(data, IDENTITY) == arrival
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
    "positions",
    [
        [], None, {}, [2, 63], [[2]], [[2, 63]], [[2, 63], [3, 0], [4, 0]], [[2, 63], [5, 0]],
        [[2, 63], [2, 63], [3, 0]], [[2, 64], [3, 0]],
        [[2, 1 << 16], [3, 0]], [[2, -1], [3, 0]], [[2, 0], [3, 64]], [[2, 0], [3, 1 << 17]],
        [[2, 0], [3, 1 << 31]], [[2, 0], [3, True]], [["2", 0], [3, 0]], [[2.0, 0], [3, 0]], [[2, 0], [3, 0, 0]],
    ],
)  # fmt: skip
def test_positions_of_other_queues_or_outside_of_them(positions: object) -> None:
    with pytest.raises(Refused):
        unpack(packed({**RESUMABLE_BODY, "positions": positions}), IDENTITY)


def test_positions_that_do_not_go_with_the_rest() -> None:
    without = {name: value for name, value in RESUMABLE_BODY.items() if name != "positions"}
    late = entry(0x05, prp1=0x8000, cdw10=63 << 16 | 1, cdw11=3)  # with the admin queue's interrupt
    for body in (
        {**RESUMABLE_BODY, "phase": "failed"},
        {**BODY, "phase": "resumable"},
        without,
        {**RESUMABLE_BODY, "cc": 0x460000},
        {**RESUMABLE_BODY, "admin": {**QUEUES, "history": QUEUES["history"][:2]}},
        {**RESUMABLE_BODY, "admin": {**QUEUES, "history": [late.hex(), *QUEUES["history"][1:]]}},
    ):
        with pytest.raises(Refused):
            unpack(packed(body), IDENTITY)


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


NUMBERS = st.integers(-1, 5) | st.integers() | VALUES
PLACES = NUMBERS | st.integers(60, 70).map(lambda place: 1 << 16 | place)
POSITIONS = st.lists(st.tuples(NUMBERS, PLACES), max_size=3).map(
    lambda positions: packed({**RESUMABLE_BODY, "positions": positions})
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(pack(draw(st.sampled_from([ARRIVAL, RESUMABLE])), IDENTITY))
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
    document.land(arrival, controller)
    assert bool(controller.positions) is (controller.phase is Phase.RESUMABLE)
    assert all(position & 0xFFFF < 64 for position in controller.positions.values())
    controller.target_ready()
    assert len(controller.admin.commands) <= 256


HOSTILE = st.binary(max_size=64) | NEARLY | ADMINS | POSITIONS | damaged()


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
