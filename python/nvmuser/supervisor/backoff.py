"""Pauses between attempts that fail: none at first, then longer and longer ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

_FIRST = 0.1
_LONGEST = 10.0

Sleep = Callable[[float], Awaitable[None]]


class Backoff:
    """Counts failures in a row.

    :param free: so many failures cost no pause.
    :param sleep: `asyncio.sleep`, or a test's.
    """

    def __init__(self, *, free: int = 0, sleep: Sleep = asyncio.sleep) -> None:
        self.failures = 0
        self._free = free
        self._sleep = sleep

    def worked(self) -> None:
        """The next failure is the first again."""
        self.failures = 0

    def failed(self) -> None:
        self.failures += 1

    @property
    def pause(self) -> float:
        """Seconds until the next attempt."""
        paid = self.failures - self._free
        return min(_FIRST * 2.0 ** min(paid - 1, 30), _LONGEST) if paid > 0 else 0.0

    async def wait(self) -> None:
        """Wait for as long as the failures so far ask for."""
        if self.pause:
            await self._sleep(self.pause)
