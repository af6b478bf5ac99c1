"""The state of a device in Python that travels: the same there, and whatever else comes is refused."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from nvmuser.errors import DeviceError
from nvmuser.pci.bars import Area, Bar, BarMemory
from nvmuser.pci.travel import State, Travel, is_whole, unpack

VECTORS = 8


class Device:
    """Its state is any bytes but none."""

    def __init__(self, own: bytes) -> None:
        self.own = own
        self.asserts_intx = True
        self.triggered: list[int] = []

    def save(self) -> bytes:
        return self.own

    def load(self, data: bytes) -> None:
        if not data:
            raise DeviceError("nothing")
        self.own = data

    def resume_intx(self, asserted: bool) -> None:
        self.asserts_intx = asserted

    def travel(self, memories: dict[int, BarMemory]) -> Travel:
        return Travel(self, memories, VECTORS, self.triggered.append)


def leave(travel: Travel) -> bytes:
    travel.enter(runs=False, saves=False, loads=False)
    travel.keeps(3)
    travel.enter(runs=False, saves=True, loads=False)
    data = b""
    while piece := travel.read(7):
        data += piece
    return data


def test_there_as_here() -> None:
    bar = Bar(0, 0x2000, mappable=(Area(0x1000, 0x1000),))
    memories = [BarMemory(bar) for _ in range(2)]
    here, there = Device(b"own"), Device(b"other")
    there.asserts_intx = False
    memories[0].view[5] = 77
    data = leave(here.travel({0: memories[0]}))
    arriving = there.travel({0: memories[1]})
    arriving.enter(runs=False, saves=False, loads=True)
    for start in range(0, len(data), 1000):
        arriving.write(data[start : start + 1000])
    assert (there.own, there.asserts_intx, memories[1].view[5]) == (b"own", True, 77)
    assert there.triggered == []
    arriving.enter(runs=True, saves=False, loads=False)
    assert there.triggered == [3]
    for memory in memories:
        memory.close()


def test_it_runs_again_here() -> None:
    here = Device(b"own")
    travel = here.travel({})
    leave(travel)
    travel.enter(runs=True, saves=False, loads=False)
    assert here.triggered == [3]
    assert not travel.keeps(3)


@given(st.binary(max_size=200), st.integers(0, 100), st.integers(1, 50))
def test_whatever_comes_is_judged(junk: bytes, at: int, size: int) -> None:
    whole = State(b"own", {}, False, frozenset({1})).pack()
    for data in (junk, whole[:at] + junk + whole[at:]):
        device = Device(b"before")
        travel = device.travel({})
        travel.enter(runs=False, saves=False, loads=True)
        with contextlib.suppress(DeviceError):
            for start in range(0, len(data), size):
                travel.write(data[start : start + size])
        if device.own != b"before":
            first = data[: next(end for end in range(len(data) + 1) if is_whole(data[:end]))]
            assert unpack(first, {}, VECTORS).own == device.own
