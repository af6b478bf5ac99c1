"""What a driver has set up, as the commands that another target would carry out again."""

from __future__ import annotations

import pytest
from vfio_guest import entry

from nvmf_vfio.state.history import PHASE, History, fits

DELETE_SQ, CREATE_SQ, DELETE_CQ, CREATE_CQ, SET_FEATURES, IDENTIFY, DOORBELLS = 0x00, 0x01, 0x04, 0x05, 0x09, 0x06, 0x7C
CQ, SQ = (
    entry(CREATE_CQ, cdw10=31 << 16 | 1, cdw11=1 << 16 | 3),
    entry(CREATE_SQ, cdw10=15 << 16 | 1, cdw11=1 << 16 | 1),
)
BUFFERS = entry(DOORBELLS, prp1=0x5000)


def history(*entries: bytes) -> History:
    found = History()
    for one in entries:
        found.add(one)
    return found


def feature(number: int, value: int = 0) -> bytes:
    return entry(SET_FEATURES, cdw10=number, cdw11=value)


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        ([CQ, SQ, entry(IDENTIFY)], [CQ, SQ]),
        ([CQ, SQ, entry(DELETE_SQ, cdw10=1)], [CQ]),
        ([CQ, SQ, entry(DELETE_SQ, cdw10=1), entry(DELETE_CQ, cdw10=1)], []),
        ([CQ, entry(DELETE_CQ, cdw10=2)], [CQ]),
        ([BUFFERS, CQ, entry(DOORBELLS, prp1=0x7000)], [entry(DOORBELLS, prp1=0x7000), CQ]),
        ([feature(7, 1), CQ, feature(7, 2), feature(11, 3)], [feature(7, 2), CQ, feature(11, 3)]),
        ([feature(4, 1), feature(4, 1 << 16)], [feature(4, 1), feature(4, 1 << 16)]),
        ([feature(9, 1), feature(9, 2), feature(9, 1 << 16 | 1)], [feature(9, 1 << 16 | 1), feature(9, 2)]),
    ],
)
def test_what_is_superseded_is_left_out(entries: list[bytes], left: list[bytes]) -> None:
    assert history(*entries).entries == left


def test_a_guest_that_sets_features_for_ever_is_remembered_in_bounds() -> None:
    found = History()
    for nsid in range(5000):
        found.add(feature(7)[:4] + nsid.to_bytes(4, "little") + feature(7)[8:])
    assert len(found.entries) <= 4096
    assert found.queues() is None, "something is not known"


def test_queues_that_can_go_on() -> None:
    assert history(CQ, SQ, BUFFERS).queues() == {3: 32, 2: 16}
    assert history(SQ, CQ, feature(7), BUFFERS).in_order() == [feature(7), BUFFERS, CQ, SQ]


@pytest.mark.parametrize(
    "entries",
    [
        [CQ, SQ],
        [BUFFERS],
        [CQ, SQ, BUFFERS, feature(0x81)],
        [entry(CREATE_CQ, cdw10=31 << 16 | 1, cdw11=3), SQ, BUFFERS],
    ],
    ids=["no-shadow-doorbells", "no-queues", "a-value-in-memory", "the-admin-queue's-interrupt"],
)
def test_queues_that_cannot(entries: list[bytes]) -> None:
    assert history(*entries).queues() is None


@pytest.mark.parametrize(
    ("positions", "do"),
    [
        ({2: 15, 3: 31}, True),
        ({2: 0, 3: PHASE | 31}, True),
        ({2: 16, 3: 31}, False),
        ({2: PHASE, 3: 31}, False),
        ({2: 15, 3: 32}, False),
        ({2: 15, 3: PHASE << 1}, False),
        ({2: 15}, False),
        ({2: 15, 3: 31, 4: 0}, False),
    ],
)
def test_positions_within_their_queues(positions: dict[int, int], do: bool) -> None:
    assert fits(positions, history(CQ, SQ, BUFFERS).queues()) is do
    assert not fits(positions, None)
