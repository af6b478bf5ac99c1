"""What polled and awaited queues share: slots, the commands, and what an error status means.

Owns a queue pair of the driver. It decides neither when to poll nor what a caller gets in return for a command.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nvmuser.errors import HostConnectionError, HostError, NvmeStatusError, UsageError
from nvmuser.initiator.environment import api, reason
from nvmuser.initiator.memory import Memory, Transfer, transfer
from nvmuser.initiator.scatter import Scattered

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from nvmuser.initiator.controller import Controller, Namespace

MAX_DEPTH = 1024
MAX_RANGES = 256
"""Ranges of one Dataset Management command (NVM command set specification)."""
_FUA = 1 << 30
"""Force Unit Access, in command dword 12, as the driver takes it."""

R = TypeVar("R")
Data = Transfer | Memory | Scattered
"""What a command transfers, kept until the controller is done with it."""


class Opcode(IntEnum):
    """NVM commands (NVM command set specification, figure "Opcodes for NVM Commands")."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Commands(ABC, Generic[R]):
    """A queue pair with `depth` slots, one for each command in flight.

    Each command takes addresses and sizes in logical blocks of its namespace, and raises UsageError for a buffer that
    is no whole number of blocks or cannot be used, and HostError once the queue is closed.

    :raises UsageError: the depth is not 1 to 1024.
    :raises HostError: the controller gives no queue.
    """

    def __init__(self, controller: Controller, depth: int, *, batch: bool) -> None:
        if not 1 <= depth <= MAX_DEPTH:
            raise UsageError(f"a queue's depth is 1 to {MAX_DEPTH}, not {depth}")
        self.controller = controller
        self.depth = depth
        self._ffi, self._lib = api()
        self._queue: Any = self._lib.nvmuser_queue_open(controller.pointer, depth, batch)
        if not self._queue:
            raise HostError(f"{controller.path}: no queue of depth {depth}{reason()}")
        self._completions = self._lib.nvmuser_queue_slots(self._queue)
        self._failures = self._lib.nvmuser_queue_failures(self._queue)
        self._free = list(range(depth))
        self._transfers: list[Data | None] = [None] * depth

    @abstractmethod
    def _submit(
        self, opcode: Opcode, namespace: Namespace, data: Data | None, lba: int, blocks: int, flags: int = 0
    ) -> R: ...

    @abstractmethod
    def close(self) -> None:
        """Close the queue: what is in flight fails with HostError. Idempotent."""

    @property
    def in_flight(self) -> int:
        """Number of commands that the controller has not answered yet, including those that have timed out."""
        return self.depth - len(self._free)

    def read(self, namespace: Namespace, lba: int, buffer: Memory | Scattered | Buffer) -> R:
        """Read blocks into the buffer, from `lba` on."""
        data = _data(buffer, reading=True)
        return self._submit(Opcode.READ, namespace, data, lba, _blocks(namespace, data))

    def write(self, namespace: Namespace, lba: int, buffer: Memory | Scattered | Buffer, *, fua: bool = False) -> R:
        """Write the buffer from `lba` on.

        :param fua: answered when it has reached the medium (Force Unit Access).
        """
        data = _data(buffer, reading=False)
        return self._submit(Opcode.WRITE, namespace, data, lba, _blocks(namespace, data), _FUA if fua else 0)

    def compare(self, namespace: Namespace, lba: int, buffer: Memory | Scattered | Buffer) -> R:
        """Compare blocks with the buffer: NvmeStatusError (COMPARE FAILURE) when they differ."""
        data = _data(buffer, reading=False)
        return self._submit(Opcode.COMPARE, namespace, data, lba, _blocks(namespace, data))

    def write_zeroes(self, namespace: Namespace, lba: int, blocks: int) -> R:
        """Fill blocks with zeroes, from `lba` on, without a transfer."""
        return self._submit(Opcode.WRITE_ZEROES, namespace, None, lba, blocks)

    def flush(self, namespace: Namespace) -> R:
        """Flush: what was answered before has reached the medium when this is answered."""
        return self._submit(Opcode.FLUSH, namespace, None, 0, 0)

    def deallocate(self, namespace: Namespace, ranges: Sequence[tuple[int, int]]) -> R:
        """Deallocate blocks (Dataset Management).

        :param ranges: first block and number of blocks of each.
        :raises UsageError: there is no range, or more than 256.
        """
        if not 1 <= len(ranges) <= MAX_RANGES:
            raise UsageError(f"1 to {MAX_RANGES} ranges can be deallocated at once, not {len(ranges)}")
        made = self._ffi.new("struct spdk_nvme_dsm_range[]", len(ranges))
        for entry, (lba, blocks) in zip(made, ranges, strict=True):
            entry.starting_lba, entry.length = lba, blocks
        return self._submit(Opcode.DATASET_MANAGEMENT, namespace, Transfer(0, 0, made), 0, len(ranges))

    def _send(
        self, opcode: Opcode, namespace: Namespace, data: Data | None, lba: int, blocks: int, flags: int
    ) -> int | None:
        """Give the driver a command; return its slot, or None: not before one in flight has completed.

        :raises HostError: the driver does not take it.
        :raises UsageError: its blocks are out of any range.
        """
        if not self._free:
            return None
        queue, pointer, slot = self._open(), namespace.handle(self.controller), self._free[-1]
        if opcode is Opcode.DATASET_MANAGEMENT:
            assert isinstance(data, Transfer)
            failed = self._lib.nvmuser_submit_dsm(queue, pointer, slot, _DEALLOCATE, data.kept, blocks)
        else:
            try:
                failed = self._transfer(queue, pointer, slot, opcode, data, lba, blocks, flags)
            except OverflowError:
                raise UsageError(f"block {lba}, {blocks} blocks: out of any range") from None
        if failed == -errno.ENOMEM and self.in_flight:
            # The driver splits large transfers, and has a limited number of requests for the parts.
            return None
        if failed:
            self.controller.poll()
            raise HostError(f"{opcode.name}: the driver did not take the command: {os.strerror(-failed)}")
        self._free.pop()
        self._transfers[slot] = data
        return slot

    def _transfer(
        self, queue: Any, pointer: Any, slot: int, opcode: Opcode, data: Data | None,
        lba: int, blocks: int, flags: int,
    ) -> int:  # fmt: skip
        if isinstance(data, Scattered):
            pages = (data.prp1, data.prp2)
            return int(self._lib.nvmuser_submit_prp(queue, pointer, slot, opcode, *pages, lba, blocks, flags))
        address = 0 if data is None else data.address
        return int(self._lib.nvmuser_submit(queue, pointer, slot, opcode, address, lba, blocks, flags))

    def _poll(self) -> list[int]:
        """Poll the queue; return the slots whose commands have completed.

        :raises HostConnectionError: the controller is gone.
        """
        count = self._lib.nvmuser_poll(self._open())
        if count < 0:
            raise HostConnectionError(f"{self.controller.path}: the controller is gone: what was in flight is unknown")
        completed: list[int] = self._ffi.unpack(self._completions, count)
        return completed

    def _errors(self) -> dict[int, NvmeStatusError]:
        """The errors of the last poll, by slot."""
        failed = self._lib.nvmuser_queue_failed(self._queue)
        return {self._failures[n].slot: self._error(self._failures[n]) for n in range(failed)}

    def _error(self, failure: Any) -> NvmeStatusError:
        status = (failure.status_type, failure.status_code)
        type_name, name = (
            self._ffi.string(text).decode()
            for text in (self._lib.nvmuser_status_type_name(*status), self._lib.nvmuser_status_name(*status))
        )
        return NvmeStatusError(*status, type_name, name, do_not_retry=failure.do_not_retry)

    def _open(self) -> Any:
        if self._queue is None:
            raise HostError(f"{self.controller.path}: the queue is closed")
        return self._queue

    def _close(self) -> bool:
        """Delete the queue pair: the controller gives up what is in flight. False when that was done before."""
        if self._queue is None:
            return False
        self._lib.nvmuser_queue_close(self._queue)
        self._queue = None
        self._transfers = []
        self.controller.forget(self)
        return True


_DEALLOCATE = 1 << 2
"""Attribute Deallocate of Dataset Management, command dword 11."""


def _data(buffer: Memory | Scattered | Buffer, *, reading: bool) -> Data:
    return buffer if isinstance(buffer, Scattered) else transfer(buffer, reading=reading)


def _blocks(namespace: Namespace, data: Data) -> int:
    blocks, rest = divmod(data.size, namespace.block_size)
    if rest:
        raise UsageError(f"{data.size} bytes are no whole number of blocks of {namespace.block_size}")
    return blocks
