"""One reading for all who ask at the same time: each gets what was read after they asked.

Handing a reading to a thread and back takes longer than the reading itself does, where nothing has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Called for what `read` returns.

    :param read: reads, in a thread.
    """

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._current: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None
        """Which waits for the end of the current one: that may have begun before they asked."""

    async def __call__(self) -> T:
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._current))
        # Who is cancelled takes it from nobody else.
        return await asyncio.shield(self._next)

    async def _after(self, current: asyncio.Task[T] | None) -> T:
        if current:
            await asyncio.wait([current])
        self._current, self._next = self._next, None
        return await asyncio.to_thread(self._read)
