"""A queue pair that its owner polls: commands become requests, which are done when a poll has brought them.

Owns no thread and no loop: nothing happens but in `poll`, and in what calls it.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nvmuser.errors import HostConnectionError, HostError, HostTimeoutError, NvmeStatusError
from nvmuser.initiator.commands import Commands, Data, Opcode

if TYPE_CHECKING:
    from nvmuser.initiator.controller import Controller, Namespace

_CHECK_S = 0.01
"""How often the controller is checked while a command is waited for."""


class Request:
    """A command in flight, or one that is done."""

    __slots__ = ("_queue", "_slot", "done", "error", "opcode")

    def __init__(self, queue: Queue, slot: int, opcode: Opcode) -> None:
        self._queue = queue
        self._slot = slot
        self.opcode = opcode
        self.done = False
        self.error: HostError | None = None

    def result(self) -> None:
        """Return when the command has succeeded.

        :raises NvmeStatusError: the controller answered with an error.
        :raises HostError: it is not done.
        """
        if not self.done:
            raise HostError(f"{self.opcode.name} is still in flight")
        if self.error is not None:
            raise self.error

    def wait(self, timeout: float | None = None) -> None:
        """Poll until it is done.

        :param timeout: seconds; None is the queue's.
        :raises NvmeStatusError: the controller answered with an error.
        :raises HostTimeoutError: no answer in time. The controller was asked to abort the command, and until it has
            answered, the buffer belongs to it.
        :raises HostConnectionError: it is gone.
        """
        self._queue.wait([self], timeout)

    def abort(self) -> None:
        """Ask the controller to abort it: it completes as ABORTED - BY REQUEST, unless it has just ended."""
        if not self.done:
            self._queue.abort(self._slot)


class Queue(Commands[Request]):
    """A polled queue pair, made by `Controller.queue`. It belongs to one thread at a time."""

    def __init__(self, controller: Controller, depth: int, timeout: float | None) -> None:
        super().__init__(controller, depth, batch=False)
        self.timeout = timeout
        self._requests: list[Request | None] = [None] * depth
        self._checked = 0.0

    def poll(self) -> list[Request]:
        """Poll once; return what has completed, in the order of completion.

        :raises HostConnectionError: the controller is gone; every request has failed with this error.
        """
        try:
            now = time.monotonic()
            if now - self._checked > _CHECK_S:
                self._checked = now
                self.controller.poll()
            slots = self._poll()
        except HostConnectionError as error:
            self._fail(error)
            raise
        return self._finish(slots) if slots else []

    def wait(self, requests: list[Request], timeout: float | None = None) -> None:
        """Poll until all are done. What fails first raises as in `Request.wait`.

        :param timeout: seconds; None is the queue's.
        :raises HostTimeoutError: no answer in time.
        """
        timeout = self.timeout if timeout is None else timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        for request in requests:
            while not request.done:
                if not self.poll() and deadline is not None and time.monotonic() > deadline:
                    request.abort()
                    raise HostTimeoutError(f"{request.opcode.name}: no answer within {timeout:g} s")
        for request in requests:
            request.result()

    def abort(self, slot: int) -> None:
        """Ask the controller to abort the command in a slot.

        :raises HostError: the queue is closed.
        """
        self._lib.nvmuser_abort(self._open(), slot)

    def _submit(
        self, opcode: Opcode, namespace: Namespace, data: Data | None, lba: int, blocks: int, flags: int = 0
    ) -> Request:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        while (slot := self._send(opcode, namespace, data, lba, blocks, flags)) is None:
            while not self.poll():
                if deadline is not None and time.monotonic() > deadline:
                    raise HostTimeoutError(f"{opcode.name}: no slot was free within {self.timeout:g} s")
        request = self._requests[slot] = Request(self, slot, opcode)
        return request

    def _finish(self, slots: list[int]) -> list[Request]:
        errors: dict[int, NvmeStatusError] = self._errors()
        finished = []
        for slot in slots:
            request, data = self._requests[slot], self._transfers[slot]
            assert request is not None
            self._requests[slot] = self._transfers[slot] = None
            self._free.append(slot)
            request.done, request.error = True, errors.get(slot)
            if data is not None and data.into is not None and request.error is None:
                data.finish()
            finished.append(request)
        return finished

    def _fail(self, error: HostError) -> None:
        for slot, request in enumerate(self._requests):
            if request is not None:
                request.done, request.error = True, error
                self._requests[slot] = None

    def close(self) -> None:
        """Close the queue: what is in flight fails with HostError. Idempotent."""
        if self._close():
            self._fail(HostError(f"{self.controller.path}: the queue was closed"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
