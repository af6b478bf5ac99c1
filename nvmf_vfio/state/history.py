"""What a driver has set up in its controller, as the admin commands that another target would have to carry out again.

Owns the list of those commands, without those that others have superseded; so it does not grow as long as a guest runs.
Whether a controller can go on with its queues, where they were, follows from it: see `queues`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from nvmf_vfio.state.registers import (
    OPC_DOORBELL_BUFFER_CONFIG,
    STATEFUL_OPCODES,
    command_of,
)

_DELETE_SQ, _CREATE_SQ, _DELETE_CQ, _CREATE_CQ, _SET_FEATURES = 0x00, 0x01, 0x04, 0x05, 0x09
_CREATED_BY: Final = {_DELETE_SQ: _CREATE_SQ, _DELETE_CQ: _CREATE_CQ}
_MOST = 4096
_WITH_DATA: Final = frozenset({0x03, 0x0C, 0x0E, 0x16, 0x81})
"""Features whose value is in the guest's memory (section 5.21): LBA Range Type, Autonomous Power State Transition,
Timestamp, Host Behavior Support, Host Identifier. By now there may be something else there."""
_BY_SELECTOR: Final = {0x04: 0xFFFF0000, 0x09: 0x0000FFFF}
"""Features that have a value for each threshold, or vector: the bits of dword 11 that say which."""
_ENABLED = 0x2
"""IEN in dword 11 of Create I/O Completion Queue (section 5.3)."""

Positions = Mapping[int, int]
"""Where queues are, by the number of the doorbell: twice the queue's identifier, and 1 more for a completion queue.

A submission queue's head; a completion queue's tail, with its phase in bit 16.
"""
PHASE = 1 << 16


def dword(entry: bytes, number: int) -> int:
    """A dword of a submission queue entry."""
    return int.from_bytes(entry[4 * number : 4 * number + 4], "little")


def doorbell(entry: bytes) -> int:
    """The number of the doorbell of the queue that a command creates."""
    return 2 * (dword(entry, 10) & 0xFFFF) + (command_of(entry)[0] == _CREATE_CQ)


class History:
    """The commands, in an order in which a target can carry them out."""

    def __init__(self, entries: Iterable[bytes] = ()) -> None:
        self.entries = list(entries)

    def clear(self) -> None:
        """Forget everything: the controller was disabled."""
        self.entries.clear()

    def add(self, entry: bytes) -> None:
        """Add a command that has succeeded, in place of what it supersedes. Others than stateful ones are left out."""
        opcode = command_of(entry)[0]
        if opcode not in STATEFUL_OPCODES:
            return
        if opcode in _CREATED_BY:
            gone = (_CREATED_BY[opcode], dword(entry, 10) & 0xFFFF)
            self.entries = [known for known in self.entries if _subject(known) != gone]
            return
        subject = _subject(entry)
        for place, known in enumerate(self.entries):
            if _subject(known) == subject:
                self.entries[place] = entry
                return
        if len(self.entries) < _MOST:
            self.entries.append(entry)

    def shadow_doorbells(self) -> int | None:
        """The guest physical address of the shadow doorbells, if the driver has any."""
        for entry in self.entries:
            if command_of(entry)[0] == OPC_DOORBELL_BUFFER_CONFIG:
                return int.from_bytes(entry[24:32], "little") & ~0xFFF
        return None

    def queues(self) -> dict[int, int] | None:
        """The I/O queues with which the controller could go on at another target: sizes by doorbell (`Positions`).

        :returns: None when it cannot. It has none; its doorbells are not in guest memory; something was set up that
            cannot be repeated; or a queue has the admin queue's interrupt, which is ours then (`nvmf_vfio.proxy`).
        """
        if self.shadow_doorbells() is None or len(self.entries) >= _MOST:
            return None
        found: dict[int, int] = {}
        for entry in self.entries:
            opcode, _ = command_of(entry)
            if opcode == _SET_FEATURES and dword(entry, 10) & 0xFF in _WITH_DATA:
                return None
            if opcode == _CREATE_CQ and dword(entry, 11) & _ENABLED and not dword(entry, 11) >> 16:
                return None
            if opcode in (_CREATE_CQ, _CREATE_SQ):
                found[doorbell(entry)] = (dword(entry, 10) >> 16) + 1
        return found or None

    def in_order(self) -> list[bytes]:
        """The commands as a target needs them whose queues go on: what they depend on before them."""
        last = {_CREATE_CQ: 1, _CREATE_SQ: 2}
        return sorted(self.entries, key=lambda entry: last.get(command_of(entry)[0], 0))


def _subject(entry: bytes) -> tuple[int, ...]:
    """What a command sets; of two with the same, the later counts."""
    opcode = command_of(entry)[0]
    if opcode == _SET_FEATURES:
        feature = dword(entry, 10) & 0xFF
        return opcode, feature, dword(entry, 1), dword(entry, 11) & _BY_SELECTOR.get(feature, 0)
    if opcode == OPC_DOORBELL_BUFFER_CONFIG:
        return (opcode,)
    return opcode, dword(entry, 10) & 0xFFFF


def fits(positions: Positions, queues: Mapping[int, int] | None) -> bool:
    """Whether these are positions of these queues, each within it."""
    if queues is None or positions.keys() != queues.keys():
        return False
    return all(
        (value & ~PHASE if number & 1 else value) in range(queues[number]) for number, value in positions.items()
    )
