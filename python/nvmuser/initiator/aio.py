"""A queue pair in an event loop: commands are awaited.

Owns the polling: while commands are in flight, the loop polls in each of its rounds, because SPDK's driver knows no
interrupts over vfio-user; while nothing comes back, it polls each millisecond and leaves the core to others. What is
submitted in one round goes to the controller together.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nvmuser.errors import HostConnectionError, HostError, HostTimeoutError, UsageError
from nvmuser.initiator.commands import Commands, Data, Opcode

if TYPE_CHECKING:
    from nvmuser.initiator.controller import Controller, Namespace

_CHECK_S = 0.01
_EAGER_S = 0.002
"""How long after the last completion each round of the loop polls."""
_IDLE_S = 0.001

Answer = asyncio.Future[None]
_Command = tuple[Answer, Opcode, "Namespace", Data | None, int, int, int]


class AsyncQueue(Commands[Answer]):
    """An awaited queue pair, made by `Controller.async_queue`. It belongs to the loop that it was made in.

    Each command returns a future. More commands than `depth` wait their turn. A future that is cancelled has its
    command aborted; its slot and buffer are in use until the controller has answered. The futures' errors are those of
    `nvmuser.initiator.queue.Request.wait`; a command that the driver refuses raises HostError or UsageError.
    """

    def __init__(self, controller: Controller, depth: int, timeout: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(controller, depth, batch=True)
        self.timeout = timeout
        self._answers: list[Answer | None] = [None] * depth
        self._opcodes: list[Opcode] = [Opcode.FLUSH] * depth
        self._waiting: deque[_Command] = deque()
        self._given_up: set[int] = set()
        self._expired = self._ffi.new("uint32_t[]", depth)
        self._polling: asyncio.Handle | None = None
        self._resting = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._checked = self._brought = 0.0

    def _submit(
        self, opcode: Opcode, namespace: Namespace, data: Data | None, lba: int, blocks: int, flags: int = 0
    ) -> Answer:
        self._open()
        answer: Answer = self._loop.create_future()
        # In order: a small command does not overtake a large one that waits for more than a slot.
        if self._waiting or not self._begin(answer, opcode, namespace, data, lba, blocks, flags):
            self._waiting.append((answer, opcode, namespace, data, lba, blocks, flags))
        if self._polling is None or self._resting:
            self._wake()
        return answer

    def _begin(
        self, answer: Answer, opcode: Opcode, namespace: Namespace, data: Data | None, lba: int, blocks: int, flags: int
    ) -> bool:
        slot = self._send(opcode, namespace, data, lba, blocks, flags)
        if slot is None:
            return False
        self._answers[slot] = answer
        self._opcodes[slot] = opcode
        return True

    def _wake(self) -> None:
        """Poll in the next round of the loop, and in those that follow."""
        if self._polling is not None:
            self._polling.cancel()
        self._resting = False
        self._brought = time.monotonic()
        self._polling = self._loop.call_soon(self._round)
        self._idle.clear()

    async def drain(self) -> None:
        """Wait until the controller has answered every command, cancelled ones included."""
        await self._idle.wait()

    def _round(self) -> None:
        self._polling = None
        try:
            slots = self._poll()
            now = time.monotonic()
            if slots:
                self._brought = now
                self._finish(slots)
            if now - self._checked > _CHECK_S:
                self._checked = now
                self._check()
        except HostConnectionError as error:
            self._fail(error)
            return
        if self._free:
            self._start_waiting()
        if len(self._free) == self.depth:
            self._idle.set()
            return
        self._resting = now - self._brought >= _EAGER_S
        if self._resting:
            self._polling = self._loop.call_later(_IDLE_S, self._round)
        else:
            self._polling = self._loop.call_soon(self._round)

    def _finish(self, slots: list[int]) -> None:
        errors = self._errors() if self._lib.nvmuser_queue_failed(self._queue) else None
        answers, transfers = self._answers, self._transfers
        for slot in slots:
            answer, data = answers[slot], transfers[slot]
            answers[slot] = transfers[slot] = None
            if answer is None or answer.done():
                self._given_up.discard(slot)
            elif errors is not None and slot in errors:
                answer.set_exception(errors[slot])
            else:
                if data is not None and data.into is not None:
                    data.finish()
                answer.set_result(None)
        self._free += slots

    def _start_waiting(self) -> None:
        while self._waiting:
            command = self._waiting[0]
            answer = command[0]
            try:
                if not answer.done() and not self._begin(*command):
                    return
            except (HostError, UsageError) as error:
                answer.set_exception(error)
            self._waiting.popleft()

    def _check(self) -> None:
        """Check that the controller is there, fail commands that took too long, abort those not awaited any more."""
        self.controller.poll()
        if self.timeout is not None:
            count = self._lib.nvmuser_queue_expired(self._queue, round(self.timeout * 1e6), self._expired, self.depth)
            for slot in self._ffi.unpack(self._expired, count):
                answer = self._answers[slot]
                if answer is not None and not answer.done():
                    message = f"{self._opcodes[slot].name}: no answer within {self.timeout:g} s"
                    answer.set_exception(HostTimeoutError(message))
        for slot, answer in enumerate(self._answers):
            if answer is not None and answer.done() and slot not in self._given_up:
                self._given_up.add(slot)
                self._lib.nvmuser_abort(self._queue, slot)

    def _fail(self, error: HostError) -> None:
        """Fail all commands: nothing of this queue will complete any more."""
        self._idle.set()
        waiting = [command[0] for command in self._waiting]
        self._waiting.clear()
        for answer in (*self._answers, *waiting):
            if answer is not None and not answer.done():
                answer.set_exception(error)
        self._answers = [None] * self.depth

    def close(self) -> None:
        """Close the queue: what is in flight fails with HostError. Idempotent."""
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        if self._close():
            self._fail(HostError(f"{self.controller.path}: the queue was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
