"""The commands that a guest has outstanding in its admin queue.

Linux and other drivers ring the admin queue's doorbells by register even where they use shadow doorbells for I/O queues
(`nvme_dbbuf_init` in Linux leaves queue 0 out), and a trapped doorbell passes through the endpoint. So it can look at
each command before the target does, and at each completion when the guest reports that it has seen it.

Owns the positions in both rings and the set of outstanding commands; the rings themselves are the guest's. What is read
from them may be hostile: it is bounded by the queue's size, and never used as an address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvmf_vfio.state.history import History
from nvmf_vfio.state.memory import GuestMemory
from nvmf_vfio.state.registers import (
    CQE_SIZE,
    OPC_ASYNC_EVENT_REQUEST,
    SQE_SIZE,
    STATEFUL_OPCODES,
    AdminQueues,
    command_of,
    completion_of,
    completion_status,
    internal_error,
    persistent_internal_error,
)

_PAGE = 4096
_DOORBELL_PAGE = 4096
_MAX_OUTSTANDING = 256
"""Commands remembered at most. Drivers have a few tens; a guest that never looks at completions has one for each of
65,536 identifiers, and all of them would be in each record."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A command that the guest has not seen completed."""

    identifier: int
    entry: bytes

    @property
    def is_event_request(self) -> bool:
        """Whether this is an Asynchronous Event Request."""
        return command_of(self.entry)[0] == OPC_ASYNC_EVENT_REQUEST


class AdminQueue:
    """The admin queue pair, as seen through its doorbells. Disabled until `enable`."""

    def __init__(self) -> None:
        self.queues: AdminQueues | None = None
        self.tail = 0
        self.head = 0
        self.phase = 1
        self.commands: dict[int, Outstanding] = {}
        self.history = History()
        """What the driver has set up since it enabled the controller, and seen completed."""
        self.event_requested = False
        """The driver has sent an event request, which is the last thing that it does when it sets a controller up."""

    def enable(self, queues: AdminQueues) -> None:
        """Begin: the guest has set CC.EN. Both rings are empty, and the first pass of completions carries phase 1."""
        self.disable()
        self.queues = queues

    def disable(self) -> None:
        """Forget everything: the guest has cleared CC.EN, or its queues are not in its memory."""
        self.queues = None
        self.tail = self.head = 0
        self.phase = 1
        self.commands.clear()
        self.history.clear()
        self.event_requested = False

    def submitted(self, memory: GuestMemory, tail: int) -> list[Outstanding]:
        """Read the commands that the guest has submitted by moving the submission queue's tail.

        :returns: the new commands, in order.
        :raises GuestMemoryError: the queue is not in memory that the guest has mapped.
        """
        queues = self.queues
        if queues is None or tail >= queues.submission_size:
            return []
        new = []
        while self.tail != tail:
            entry = memory.read(queues.submission + self.tail * SQE_SIZE, SQE_SIZE)
            command = Outstanding(command_of(entry)[1], entry)
            self.commands.pop(command.identifier, None)
            self.commands[command.identifier] = command
            if len(self.commands) > _MAX_OUTSTANDING:
                del self.commands[next(iter(self.commands))]
            new.append(command)
            self.event_requested |= command.is_event_request
            self.tail = (self.tail + 1) % queues.submission_size
        return new

    def consumed(self, memory: GuestMemory, head: int) -> None:
        """Drop the commands whose completions the guest has seen: it has moved the completion queue's head.

        :raises GuestMemoryError: as `submitted` does.
        """
        queues = self.queues
        if queues is None or head >= queues.completion_size:
            return
        while self.head != head:
            entry = memory.read(queues.completion + self.head * CQE_SIZE, CQE_SIZE)
            self._succeeded(entry)
            self.commands.pop(completion_of(entry)[0], None)
            self.head += 1
            if self.head == queues.completion_size:
                self.head, self.phase = 0, 1 - self.phase

    def _succeeded(self, completion: bytes) -> None:
        entry = self._left_behind(completion)
        if entry:
            self.history.add(entry)

    def _left_behind(self, completion: bytes) -> bytes | None:
        """The command that completed, if it has left something behind in the controller."""
        command = self.commands.get(completion_of(completion)[0])
        if command is None or completion_status(completion):
            return None
        return command.entry if command_of(command.entry)[0] in STATEFUL_OPCODES else None

    def set_up(self, memory: GuestMemory) -> History:
        """What the driver has set up: `history`, and that whose completions it has not seen yet.

        :raises GuestMemoryError: as `submitted` does.
        """
        assert self.queues is not None
        slot, count = self.head, len(self.free_slot(memory)[2])
        found = History(self.history.entries)
        for _ in range(count):
            if entry := self._left_behind(memory.read(self.queues.completion + slot * CQE_SIZE, CQE_SIZE)):
                found.add(entry)
            slot = (slot + 1) % self.queues.completion_size
        return found

    def io_started(self, memory: GuestMemory) -> bool:
        """Whether the driver has put a command into an I/O queue, according to its shadow doorbells.

        :raises GuestMemoryError: as `submitted` does.
        """
        address = self.history.shadow_doorbells()
        if address is None:
            return False
        # Doorbells of submission queues 1, 2 … lie at multiples of 8 bytes from 8 on (section 5.7).
        page = memory.read(address, _DOORBELL_PAGE)
        return any(any(page[offset : offset + 4]) for offset in range(8, _DOORBELL_PAGE, 8))

    def free_slot(self, memory: GuestMemory) -> tuple[int, int, set[int]]:
        """The first free completion slot.

        :returns: its index and phase, and the identifiers of the commands whose completions wait before it.
        :raises GuestMemoryError: as `submitted` does.
        """
        queues = self.queues
        assert queues is not None
        slot, phase = self.head, self.phase
        completed: set[int] = set()
        page = b""
        for _ in range(queues.completion_size - 1):
            if not page:
                # A page at a time: these are up to 4,096 entries, and other guests wait.
                count = min(_PAGE // CQE_SIZE - slot % (_PAGE // CQE_SIZE), queues.completion_size - slot)
                page = memory.read(queues.completion + slot * CQE_SIZE, count * CQE_SIZE)
            entry, page = page[:CQE_SIZE], page[CQE_SIZE:]
            identifier, tag = completion_of(entry)
            if tag != phase:
                break
            completed.add(identifier)
            slot += 1
            if slot == queues.completion_size:
                slot, phase = 0, 1 - phase
        return slot, phase, completed

    def has_room(self, memory: GuestMemory) -> bool:
        """Whether a completion can be put into the guest's queue.

        :raises GuestMemoryError: as `submitted` does.
        """
        assert self.queues is not None
        size = self.queues.completion_size
        return (self.free_slot(memory)[0] - self.head) % size < size - 1

    def complete(self, memory: GuestMemory, entry: bytes, slot: int) -> None:
        """Put one completion into the guest's queue.

        :raises GuestMemoryError: as `submitted` does.
        """
        assert self.queues is not None
        address = self.queues.completion + slot * CQE_SIZE
        # The phase tag last: a driver that polls must not see the tag before the rest.
        memory.write(address, entry[:12])
        memory.write(address + 12, entry[12:])

    def wake(self, memory: GuestMemory) -> bool:
        """Complete the guest's Asynchronous Event Request with "persistent internal error".

        :returns: False when the guest has none outstanding.
        :raises GuestMemoryError: as `submitted` does.
        """
        for command in self.waiting(memory):
            if command.is_event_request:
                slot, phase, _ = self.free_slot(memory)
                self.complete(memory, persistent_internal_error(command.identifier, self.tail, phase), slot)
                return True
        return False

    def fail_waiting(self, memory: GuestMemory) -> bool:
        """Complete every outstanding command with "internal error".

        A driver that waits for one has no event request yet; without the wait it goes on to send one, and can be woken.

        :returns: False when nothing is outstanding.
        :raises GuestMemoryError: as `submitted` does.
        """
        waiting = self.waiting(memory)
        if not waiting or self.queues is None:
            return False
        slot, phase, completed = self.free_slot(memory)
        for command in waiting[: self.queues.completion_size - 1 - len(completed)]:
            self.complete(memory, internal_error(command.identifier, self.tail, phase), slot)
            slot += 1
            if slot == self.queues.completion_size:
                slot, phase = 0, 1 - phase
        return True

    def waiting(self, memory: GuestMemory) -> list[Outstanding]:
        """The commands that have no completion yet, in order.

        :raises GuestMemoryError: as `submitted` does.
        """
        if self.queues is None:
            return []
        completed = self.free_slot(memory)[2]
        return [command for command in self.commands.values() if command.identifier not in completed]

    def to_json(self) -> dict[str, Any]:
        """The queue pair for the session's record."""
        commands = [command.entry.hex() for command in self.commands.values()]
        return {
            "tail": self.tail,
            "head": self.head,
            "phase": self.phase,
            "commands": commands,
            "history": [entry.hex() for entry in self.history.entries],
            "event_requested": self.event_requested,
        }

    def load_json(self, document: dict[str, Any]) -> None:
        """Take over what `to_json` returned, after `enable`.

        :raises KeyError: a field is missing.
        :raises ValueError: a command is not written in hexadecimal digits.
        """
        self.tail, self.head, self.phase = document["tail"], document["head"], document["phase"]
        self.history = History(bytes.fromhex(text) for text in document["history"])
        self.event_requested = document["event_requested"]
        for text in document["commands"]:
            entry = bytes.fromhex(text)
            command = Outstanding(command_of(entry)[1], entry)
            self.commands[command.identifier] = command
