"""Carries out a plan: every call as soon as those before it have succeeded, all of them in one pipeline.

Owns no decision. A failed call stops what depends on it, nothing else. It works with callbacks in place of a
task for each call: with thousands of calls, tasks would take longer than SPDK does.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nvmuser.errors import NvmuserError, RpcConnectionError, RpcTimeoutError
from nvmuser.reconcile.calls import Call
from nvmuser.rpc.client import WINDOW, Client

_CALL_TIMEOUT_S = 60.0
"""A call's own deadline, where it does not write a whole device. Attaching a remote takes seconds."""


@dataclass
class Result:
    """What became of each call."""

    done: list[Call] = field(default_factory=list)
    failed: list[tuple[Call, NvmuserError]] = field(default_factory=list)
    skipped: list[Call] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """The connection ended: what was in flight may have been carried out."""
        return any(isinstance(error, RpcConnectionError) for _, error in self.failed)


@dataclass(frozen=True)
class Gate:
    """What goes on beside the first calls, and which calls wait for its end."""

    work: asyncio.Future[None]
    calls: frozenset[int] = frozenset()


async def execute(rpc: Client, calls: Sequence[Call], prepare: Callable[[Call], None], gate: Gate) -> Result:
    """Never raises for a call that fails: that is in the result.

    :param prepare: makes this machine ready for a call that is about to be made. What it raises fails the
        call.
    """
    return await _Execution(rpc, calls, prepare, gate).run()


class _Execution:
    def __init__(self, rpc: Client, calls: Sequence[Call], prepare: Callable[[Call], None], gate: Gate) -> None:
        self._rpc = rpc
        self._gate = gate
        self._calls = calls
        self._prepare = prepare
        self._result = Result()
        self._waits_for = [len(set(call.after)) for call in calls]
        self._dependents: list[list[int]] = [[] for _ in calls]
        for number, call in enumerate(calls):
            for before in set(call.after):
                self._dependents[before].append(number)
        for number in gate.calls:
            self._waits_for[number] += 1
        self._ready = deque(number for number, count in enumerate(self._waits_for) if count == 0)
        self._in_flight: dict[int, tuple[float, asyncio.Future[Any]]] = {}
        """In the order of sending."""
        self._settled: set[int] = set()
        self._is_open = False
        """Whether the calls behind the gate know of its end. `work.done()` is true a moment earlier."""
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Result:
        self._gate.work.add_done_callback(self._opened)
        try:
            self._pump()
            while not self._finished.done():
                await asyncio.wait([self._finished], timeout=self._until_deadline())
                self._expire()
            self._finished.result()
        finally:
            # Who was cancelled, or killed, makes no further calls: replies may still be on their way.
            self._finished.cancel()
            for _, reply in self._in_flight.values():
                reply.cancel()
        self._result.skipped = [call for number, call in enumerate(self._calls) if number not in self._settled]
        return self._result

    def _pump(self) -> None:
        """Fill the window."""
        while self._ready and len(self._in_flight) < WINDOW:
            number = self._ready.popleft()
            call = self._calls[number]
            try:
                self._prepare(call)
            except NvmuserError as error:
                self._failed(number, error)
                continue
            reply = self._rpc.post(call.request.method, call.request.params)
            self._in_flight[number] = (time.monotonic(), reply)
            reply.add_done_callback(functools.partial(self._replied, number))
        waiting = self._in_flight or self._ready or not self._is_open
        if not waiting and not self._finished.done():
            self._finished.set_result(None)

    def _opened(self, work: asyncio.Future[None]) -> None:
        def go_on() -> None:
            if work.cancelled():
                return
            work.result()
            for number in sorted(self._gate.calls):
                self._one_less(number)

        self._is_open = True
        self._guarded(go_on)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run `step`. An exception in a callback would be lost, and `run` would hang: it is passed to `run`."""
        if self._finished.done():
            return
        try:
            step()
            self._pump()
        except BaseException as defect:
            self._finished.set_exception(defect)

    def _one_less(self, number: int) -> None:
        self._waits_for[number] -= 1
        if self._waits_for[number] == 0:
            self._ready.append(number)

    def _replied(self, number: int, reply: asyncio.Future[Any]) -> None:
        self._in_flight.pop(number, None)
        if not reply.cancelled():
            self._guarded(functools.partial(self._settle, number, reply.exception()))

    def _settle(self, number: int, error: BaseException | None) -> None:
        if error is None:
            self._done(number)
        elif isinstance(error, NvmuserError):
            self._failed(number, error)
        else:
            raise error

    def _done(self, number: int) -> None:
        self._settled.add(number)
        self._result.done.append(self._calls[number])
        for dependent in self._dependents[number]:
            self._one_less(dependent)

    def _failed(self, number: int, error: NvmuserError) -> None:
        self._settled.add(number)
        self._result.failed.append((self._calls[number], error))

    def _until_deadline(self) -> float | None:
        oldest = next((sent for number, (sent, _) in self._in_flight.items() if self._has_deadline(number)), None)
        return None if oldest is None else max(0.0, oldest + _CALL_TIMEOUT_S - time.monotonic())

    def _has_deadline(self, number: int) -> bool:
        return not self._calls[number].needs.takes_long

    def _expire(self) -> None:
        now = time.monotonic()
        for number, (sent, reply) in list(self._in_flight.items()):
            if not self._has_deadline(number):
                continue
            if sent + _CALL_TIMEOUT_S > now:
                break
            method = self._calls[number].request.method
            if not reply.done():
                reply.set_exception(RpcTimeoutError(f"{method}: no reply within {_CALL_TIMEOUT_S:g} s"))
