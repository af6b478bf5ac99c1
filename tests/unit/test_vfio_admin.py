"""The admin queue as seen through its doorbells, against a model of a driver and a controller."""

import os
import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from vfio_fds import memory

from nvmf_vfio.keeper.fd_store import FdStore
from nvmf_vfio.protocol.messages import DmaMap, DmaUnmap
from nvmf_vfio.state.admin import AdminQueue
from nvmf_vfio.state.memory import GuestMemory, GuestMemoryError
from nvmf_vfio.state.registers import OPC_ASYNC_EVENT_REQUEST, AdminQueues

SQ, CQ, SIZE = 0x10000, 0x20000, 0x40000
IDENTIFY = 0x06
ERROR_EVENT = 0x01_03_00


class Rig:
    """Guest memory with both rings, the driver that fills one and the controller that fills the other."""

    def __init__(self, submissions: int, completions: int) -> None:
        self.store = FdStore("test", lambda _name, _descriptor: None, lambda _name: None)
        self.guest = GuestMemory()
        self.held = memory(SIZE)
        self.guest.map(DmaMap(3, 0, 0, SIZE), self.store.push(self.held.duplicate()))
        self.queues = AdminQueues(SQ, submissions, CQ, completions)
        self.admin = AdminQueue()
        self.admin.enable(self.queues)
        self.tail = self.head = self.slot = 0
        self.phase = 1
        self.outstanding: dict[int, int] = {}
        self.unseen: list[int] = []

    def submit(self, opcode: int, identifier: int) -> None:
        os.pwrite(self.held.fileno(), struct.pack("<BBH60x", opcode, 0, identifier), SQ + 64 * self.tail)
        self.tail = (self.tail + 1) % self.queues.submission_size
        self.outstanding[identifier] = opcode

    def ring(self) -> list[int]:
        return [command.identifier for command in self.admin.submitted(self.guest, self.tail)]

    def complete(self, identifier: int) -> None:
        entry = struct.pack("<IIHHHH", 0, 0, 0, 0, identifier, self.phase)
        os.pwrite(self.held.fileno(), entry, CQ + 16 * self.slot)
        self.unseen.append(identifier)
        self.slot += 1
        if self.slot == self.queues.completion_size:
            self.slot, self.phase = 0, 1 - self.phase

    def consume(self, count: int) -> None:
        for identifier in self.unseen[:count]:
            del self.outstanding[identifier]
        del self.unseen[:count]
        self.head = (self.head + count) % self.queues.completion_size
        self.admin.consumed(self.guest, self.head)

    def entry(self, slot: int) -> tuple[int, int, int, int]:
        """Dword 0, command identifier, status and phase of a completion."""
        dword0, _, _, _, identifier, status = struct.unpack("<IIHHHH", self.guest.read(CQ + 16 * slot, 16))
        return dword0, identifier, status >> 1, status & 1

    def close(self) -> None:
        self.store.close()
        self.held.close()


class AdminMachine(RuleBasedStateMachine):
    """A driver and a controller that do what they may, in any order."""

    @initialize(submissions=st.integers(2, 5), completions=st.integers(2, 5))
    def begin(self, submissions: int, completions: int) -> None:
        self.rig = Rig(submissions, completions)
        self.next = 0

    @rule(opcode=st.sampled_from([IDENTIFY, OPC_ASYNC_EVENT_REQUEST]), count=st.integers(1, 4))
    def submit(self, opcode: int, count: int) -> None:
        rig = self.rig
        new = []
        for _ in range(min(count, rig.queues.submission_size - 1, 8 - len(rig.outstanding))):
            self.next = (self.next + 1) & 0xFFFF
            rig.submit(opcode, self.next)
            new.append(self.next)
        assert rig.ring() == new

    @precondition(lambda self: self.waiting() and len(self.rig.unseen) < self.rig.queues.completion_size - 1)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        self.rig.complete(data.draw(st.sampled_from(self.waiting())))

    @precondition(lambda self: self.rig.unseen)
    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        self.rig.consume(data.draw(st.integers(1, len(self.rig.unseen))))

    @rule()
    def a_record_keeps_it(self) -> None:
        """What an endpoint that was killed has left behind is as good as what it had."""
        document = self.rig.admin.to_json()
        self.rig.admin = AdminQueue()
        self.rig.admin.enable(self.rig.queues)
        self.rig.admin.load_json(document)

    @precondition(lambda self: len(self.rig.unseen) < self.rig.queues.completion_size - 1)
    @rule()
    def wake(self) -> None:
        rig = self.rig
        requests = [i for i in self.waiting() if rig.outstanding[i] == OPC_ASYNC_EVENT_REQUEST]
        slot, phase = rig.slot, rig.phase
        before = rig.guest.read(CQ, 16 * rig.queues.completion_size)
        assert rig.admin.wake(rig.guest) == bool(requests)
        if requests:
            assert rig.entry(slot) == (ERROR_EVENT, requests[0], 0, phase)
            rig.complete(requests[0])
        else:
            assert rig.guest.read(CQ, 16 * rig.queues.completion_size) == before

    def waiting(self) -> list[int]:
        return [identifier for identifier in self.rig.outstanding if identifier not in self.rig.unseen]

    @invariant()
    def it_knows_what_is_outstanding(self) -> None:
        if hasattr(self, "rig"):
            assert list(self.rig.admin.commands) == list(self.rig.outstanding)
            slot, phase, completed = self.rig.admin.free_slot(self.rig.guest)
            assert (slot, phase, completed) == (self.rig.slot, self.rig.phase, set(self.rig.unseen))

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.close()


TestAdminMachine = AdminMachine.TestCase
TestAdminMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_failing_what_waits_wraps_with_the_phase() -> None:
    rig = Rig(8, 4)
    for identifier in (1, 2):
        rig.submit(IDENTIFY, identifier)
    rig.ring()
    for identifier in (1, 2):
        rig.complete(identifier)
    rig.consume(2)
    for identifier in (3, 4):
        rig.submit(IDENTIFY, identifier)
    rig.ring()
    assert rig.admin.fail_waiting(rig.guest)
    assert [rig.entry(slot)[1::2] for slot in (2, 3)] == [(3, 1), (4, 1)]
    assert rig.entry(2)[2] != 0, "an error"
    assert rig.admin.waiting(rig.guest) == []
    rig.close()


def test_no_more_completions_than_the_queue_has_room_for() -> None:
    rig = Rig(8, 4)
    for identifier in range(7):
        rig.submit(IDENTIFY, identifier)
    rig.ring()
    assert rig.admin.fail_waiting(rig.guest)
    assert rig.entry(3) == (0, 0, 0, 0)
    rig.close()


@pytest.mark.parametrize("value", [8, 4095, 0xFFFFFFFF])
def test_doorbells_beyond_the_queue(value: int) -> None:
    rig = Rig(8, 8)
    assert rig.admin.submitted(rig.guest, value) == []
    rig.admin.consumed(rig.guest, value)
    assert (rig.admin.tail, rig.admin.head) == (0, 0)
    rig.close()


def test_a_queue_that_is_not_in_memory() -> None:
    rig = Rig(8, 8)
    rig.guest.unmap(DmaUnmap(DmaUnmap.ALL, 0, 0))
    for act in (rig.admin.submitted, rig.admin.consumed):
        with pytest.raises(GuestMemoryError):
            act(rig.guest, 1)
    with pytest.raises(GuestMemoryError):
        rig.admin.wake(rig.guest)
    rig.close()


def test_a_guest_that_submits_and_never_completes() -> None:
    rig = Rig(256, 256)
    for identifier in range(2000):
        rig.submit(IDENTIFY, identifier)
        rig.ring()
    assert len(rig.admin.commands) <= 256
    assert 1999 in rig.admin.commands
    rig.close()


def test_rings_full_of_anything_are_read_within_bounds() -> None:
    rig = Rig(4096, 4096)
    os.pwrite(rig.held.fileno(), b"\xff" * (SIZE - CQ), CQ)
    assert rig.admin.free_slot(rig.guest)[0] == 4095
    rig.close()


def test_disabled_it_knows_nothing() -> None:
    rig = Rig(8, 8)
    rig.submit(OPC_ASYNC_EVENT_REQUEST, 1)
    rig.ring()
    rig.admin.disable()
    assert not rig.admin.wake(rig.guest)
    assert rig.admin.submitted(rig.guest, 3) == []
    rig.close()
