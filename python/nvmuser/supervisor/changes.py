"""Changes of what is wanted that come to a supervisor: those that wait while another is made are carried out together.

Owns their order and what each is answered. What is done is the engine's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from nvmuser.errors import NvmuserError
from nvmuser.model.batch import MOST, together
from nvmuser.model.change import Change
from nvmuser.model.objects import TargetSettings
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.store.events import current_actor

_GATHER_S = 0.005
_GATHER_MOST_S = 0.05
"""Those who were just answered ask for the next change at once, but not all in the same moment: as long as they keep
coming, what they ask for is taken along. So all of them go together, not in two groups of which one waits always."""

Alone = Callable[[Change], Awaitable[Outcome]]


@dataclass
class _Waiting:
    change: Change
    context: Context = field(default_factory=copy_context)
    """Of who asked, who is acting in it."""
    result: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def answer(self, found: Outcome | BaseException) -> None:
        if self.result.done():
            return
        if isinstance(found, BaseException):
            self.result.set_exception(found)
        else:
            self.result.set_result(found)


class Changes:
    """Of one supervisor.

    :param turn: held while something is changed.
    :param alone: makes a change that nothing can go together with; without the turn.
    :param afterwards: called when changes have been made, before they are answered; without the turn.
    """

    def __init__(
        self, engine: Engine, turn: asyncio.Lock, alone: Alone, afterwards: Callable[[], Awaitable[None]]
    ) -> None:
        self._engine = engine
        self._turn = turn
        self._alone = alone
        self._afterwards = afterwards
        self._queue: list[_Waiting] = []
        self._expected = 0
        """How many waited or were answered when changes were carried out last."""
        self._worker: asyncio.Task[None] | None = None

    async def carry_out(self, change: Change) -> Outcome:
        """:raises NvmuserError: nothing of it has changed, or the message has what did."""
        waiting = _Waiting(change)
        self._queue.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await waiting.result

    async def _work(self) -> None:
        while self._queue:
            batch: list[_Waiting] = []
            await self._gather()
            try:
                async with self._turn:
                    batch = self._next()
                    if not _alone(batch):
                        found = await self._together(batch)
                if _alone(batch):
                    found = [await self._one(batch[0])]
                await self._afterwards()
            except BaseException as error:
                # A defect, or the supervisor's end: nobody is left waiting.
                for waiting in batch:
                    waiting.answer(error)
                if not isinstance(error, Exception):
                    raise
                continue
            self._expected = min(MOST, len(batch) + len(self._queue))
            for waiting, result in zip(batch, found, strict=True):
                waiting.answer(result)

    async def _gather(self) -> None:
        """Wait for those who are expected, while they come."""
        end, before = time.monotonic() + _GATHER_MOST_S, 0
        while before < len(self._queue) < self._expected and time.monotonic() < end:
            before = len(self._queue)
            await asyncio.sleep(_GATHER_S)

    def _next(self) -> list[_Waiting]:
        chosen = together(self._engine.desired(), [waiting.change for waiting in self._queue])
        batch = [self._queue[number] for number in chosen]
        self._queue = [waiting for number, waiting in enumerate(self._queue) if number not in set(chosen)]
        return batch

    async def _together(self, batch: list[_Waiting]) -> list[Outcome | NvmuserError]:
        """Each by itself where one keeps all of them from being recorded."""
        actors = [waiting.context.run(current_actor) for waiting in batch]
        try:
            return await self._engine.change_together([waiting.change for waiting in batch], actors)
        except NvmuserError as error:
            if len(batch) == 1:
                return [error]
        return [found for waiting in batch for found in await self._together([waiting])]

    async def _one(self, waiting: _Waiting) -> Outcome | NvmuserError:
        try:
            task = asyncio.get_running_loop().create_task(self._made(waiting.change), context=waiting.context)
            return await task
        except NvmuserError as error:
            return error

    async def _made(self, change: Change) -> Outcome:
        return await self._alone(change)


def _alone(batch: list[_Waiting]) -> bool:
    """A target begins or ends with it, or is run otherwise."""
    return any(key.kind == TargetSettings.kind for waiting in batch for key in waiting.change.keys)
