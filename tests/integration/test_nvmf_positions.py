"""Queues that go on where they were, with our patch 0083: what is read of them, and where the next begin."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_nvme import CREATE_CQ, CREATE_SQ, DOORBELL_BUFFERS, IDENTIFY, READ, Queue, RawNvme, read_or_write

from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.history import PHASE
from nvmf_vfio.state.registers import BEGINS, DOORBELLS

PCI_COMMAND, INTERRUPT_DISABLE = 0x04, 0x400
SUCCESS, INVALID_FIELD = 0x00, 0x02
SUBMISSION, COMPLETION = DOORBELLS + 8, DOORBELLS + 12


class Shadows:
    """A driver whose doorbells are in its memory, with one queue pair."""

    def __init__(self, raw: RawNvme) -> None:
        self.raw = raw
        self.page, self.events = raw.allocate(), raw.allocate()
        raw.client.write(PCI_COMMAND, 2, 0x6 | INTERRUPT_DISABLE, CONFIG)

    def configure(self) -> None:
        assert not self.raw.admin(DOORBELL_BUFFERS, data=(self.page, self.events)).status

    def create(self, queue: Queue) -> tuple[int, int]:
        """The queue pair as it was created before: what both commands come to."""
        size, admin = (queue.entries - 1) << 16 | 1, self.raw.admin
        return (
            admin(CREATE_CQ, data=(queue.completion, 0), cdw10=size, cdw11=1).status,
            admin(CREATE_SQ, data=(queue.submission, 0), cdw10=size, cdw11=1 << 16 | 1).status,
        )

    def put(self) -> int:
        identifier = self.raw.put(read_or_write(READ, 1, (self.raw.allocate(), 0)), 1)
        self.raw.poke(self.page + 8, struct.pack("<I", self.raw.queues[1].tail))
        return identifier

    def take(self) -> int:
        self.raw.fetch(IDENTIFY, cdw10=1)  # a target that sleeps looks at all queues then
        completion = self.raw.take(1, acknowledge=False)
        self.raw.poke(self.page + 12, struct.pack("<I", self.raw.queues[1].head))
        assert not completion.status
        return completion.identifier


def left(raw: RawNvme) -> tuple[int, int]:
    return raw.client.read(SUBMISSION, 4), raw.client.read(COMPLETION, 4)


def begin(raw: RawNvme, *positions: int) -> None:
    raw.client.write(SUBMISSION, 4, positions[0])
    raw.client.write(COMPLETION, 4, positions[1])


@pytest.mark.parametrize("count", [10, 40])
def test_a_queue_goes_on_with_another_controller(
    raw: RawNvme, connect_raw: Callable[[Path], RawNvme], count: int
) -> None:
    """With what was put into it meanwhile; the second time around its completions have another phase."""
    shadows, queue = Shadows(raw), raw.queues[1]
    shadows.configure()
    for _ in range(count):
        assert shadows.put() == shadows.take()
    raw.disable()
    phase = 0 if count > queue.entries else PHASE
    positions = left(raw)
    assert positions == (BEGINS | count % queue.entries, BEGINS | phase | count % queue.entries)
    waiting = [shadows.put() for _ in range(3)]

    raw.client.close()
    other = connect_raw(raw.path)
    other.memory.close()
    other.memory = raw.memory.duplicate()
    other.client.unmap(0, 16 << 20)
    other.client.map(0, 16 << 20, other.memory)
    other._free, other._identifier = raw._free, raw._identifier
    begin(other, *positions)
    other.enable()
    other.queues[1] = queue
    moved = Shadows(other)
    moved.page, moved.events = shadows.page, shadows.events
    moved.configure()
    assert moved.create(queue) == (0, 0)
    assert [moved.take() for _ in waiting] == waiting
    for _ in range(count):
        assert moved.put() == moved.take()


def test_a_controller_that_is_enabled_again_begins_at_0(raw: RawNvme) -> None:
    """What was left behind is not where the next begin, unless that is written."""
    shadows = Shadows(raw)
    shadows.configure()
    for _ in range(5):
        assert shadows.put() == shadows.take()
    raw.disable()
    assert left(raw) == (BEGINS | 5, BEGINS | PHASE | 5)
    raw.enable()
    shadows.configure()
    raw.create_queue()
    assert shadows.put() == shadows.take()
    raw.disable()
    assert left(raw) == (BEGINS | 1, BEGINS | PHASE | 1)


@pytest.mark.parametrize(
    ("positions", "has_shadows", "statuses"),
    [
        ((BEGINS | 31, BEGINS | 0xFFFF), True, (INVALID_FIELD, None)),
        ((BEGINS | 32, BEGINS | 31), True, (SUCCESS, INVALID_FIELD)),
        ((BEGINS | 1, BEGINS | 1), False, (INVALID_FIELD, None)),
        ((1, 1), False, (SUCCESS, SUCCESS)),
    ],
    ids=["completion", "submission", "doorbells-elsewhere", "as-a-driver-might"],
)
def test_positions_that_are_refused(
    raw: RawNvme, positions: tuple[int, int], has_shadows: bool, statuses: tuple[int, int | None]
) -> None:
    queue, shadows = raw.queues[1], Shadows(raw)
    raw.disable()
    begin(raw, *positions)
    raw.enable()
    if has_shadows:
        shadows.configure()
    found = shadows.create(queue)
    assert [one for one, expected in zip(found, statuses, strict=True) if expected is not None] == [
        one for one in statuses if one is not None
    ]
    raw.fetch(IDENTIFY, cdw10=1)


def test_of_a_queue_that_was_never_there(raw: RawNvme) -> None:
    raw.disable()
    assert raw.client.read(DOORBELLS + 8 * 2, 4) == raw.client.read(DOORBELLS + 8 * 2 + 4, 4) == 0
