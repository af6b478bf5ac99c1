"""A change that was recorded, and refused when it was carried out: what it has made is taken back.

Owns the way back alone. What of a change is recorded again is `undo`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from nvmuser.errors import NvmuserError, TargetError, summary
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.model.placement import involved, moving
from nvmuser.model.sizes import format_size
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.calls import Problem
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.transit import Transit
from nvmuser.reconcile.undo import take_back
from nvmuser.store import Store

log = logging.getLogger(__name__)


class Retraction:
    """Of one engine.

    :param look: what SPDK has; nothing where there is none that answers.
    :param reconcile: carries out what is wanted on some targets.
    """

    def __init__(
        self,
        store: Store,
        transit: Transit,
        look: Callable[[], Awaitable[Actual]],
        reconcile: Callable[[set[str]], Awaitable[Outcome]],
    ) -> None:
        self._store = store
        self._transit = transit
        self._look = look
        self._reconcile = reconcile

    async def undo(
        self, before: Desired, after: Desired, change: Change, reasons: list[Problem], *, carried: bool
    ) -> str:
        """Restore what was wanted before, and take away what this change made.

        :param carried: whether what moves has left its old target: then it moves back.

        Returns what has changed all the same, in words: what a guest has seen grow cannot shrink.

        :raises TargetError: it could not be; the message has the reasons for this and for that.
        """
        why = summary(reasons)
        actual = await self._look()
        try:
            grown, moved = await asyncio.to_thread(self._take_back, before, after, change, actual)
        except NvmuserError as error:
            raise TargetError(f"{why}; recorded all the same, since that could not be undone: {error}") from error
        try:
            if moved and carried:
                await self._transit.carry(moved, {key.name for key in moved})
            self._transit.give_up(moved)
            outcome = await self._reconcile(involved(change.keys, before, after, moved))
        except NvmuserError as error:
            log.warning("not undone yet: %s", error)
            return "it is undone when the target answers"
        if left := [problem for problem in outcome.problems if problem.object in change.keys]:
            raise TargetError(f"{why}; not undone: {summary(left)}")
        if grown:
            sizes = ", ".join(f"volume {volume.name} has {format_size(volume.size)}" for volume in grown)
            return f"but for {sizes} now, nothing was changed"
        return "nothing was changed"

    def _take_back(
        self, before: Desired, after: Desired, change: Change, actual: Actual
    ) -> tuple[list[Volume], dict[Key, tuple[str, str]]]:
        """As `undo.take_back`, and what moves back by it."""
        moved = moving(after, before)
        self._transit.begin(moved)
        try:
            grown = take_back(self._store, before, after, change, actual)
        except BaseException:
            self._transit.give_up(moved)
            raise
        return grown, moved
