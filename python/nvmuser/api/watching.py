"""Events as they come, to clients that watch: server-sent events, each with its number, from which a client goes on.

Owns who watches. A watcher that does not read is let go; it comes back with the number of the last event it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

from nvmuser.api.host import Host
from nvmuser.errors import NvmuserError
from nvmuser.store.events import Event

_INTERVAL = 0.05
_BEAT_S = 15.0
_BEHIND = 2000
"""Events that wait for one watcher at most."""
_CHUNK = 1000

Valid = Callable[[], Awaitable[bool]]


class Watching:
    """All watchers of one host. What comes is read once for all of them."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._watchers: set[asyncio.Queue[Event | None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._last = 0

    @property
    def count(self) -> int:
        return len(self._watchers)

    async def close(self) -> None:
        """Every watcher ends."""
        for queue in self._watchers:
            self._cut(queue)
        if self._reader:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    async def stream(self, after: int | None, valid: Valid) -> AsyncIterator[bytes]:
        """Events after a number, and all that come.

        :param after: None: from now on.
        :param valid: asked from time to time whether the watcher still may.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue(_BEHIND)
        first, last = await asyncio.to_thread(self._host.store.event_bounds)
        if self._reader is None or self._reader.done():
            self._last = last
            self._reader = asyncio.create_task(self._read())
        self._watchers.add(queue)
        sent = last if after is None else after
        try:
            yield b": nvmuser\n\n"
            if after is not None and after < first - 1:
                yield b"event: reset\ndata: {}\n\n"  # what came between is not kept any more: list again
            while sent < last:
                for event in await asyncio.to_thread(self._host.store.events, sent, _CHUNK):
                    yield _text(event)
                    sent = event.id
                last = max(sent, self._last)
            async for text in self._live(queue, sent, valid):
                yield text
        finally:
            self._watchers.discard(queue)

    async def _live(self, queue: asyncio.Queue[Event | None], sent: int, valid: Valid) -> AsyncIterator[bytes]:
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), _BEAT_S)
            except TimeoutError:
                if not await valid():
                    return
                yield b": still here\n\n"
                continue
            if event is None:
                return
            if event.id > sent:
                sent = event.id
                yield _text(event)

    async def _read(self) -> None:
        while self._watchers:
            try:
                found = await asyncio.to_thread(self._host.store.events, self._last, _CHUNK)
            except NvmuserError:
                found = []  # the store is busy, or full: it is asked again
            for event in found:
                self._last = event.id
                for queue in self._watchers:
                    try:
                        queue.put_nowait(event)
                    except asyncio.QueueFull:
                        self._cut(queue)
            await asyncio.sleep(_INTERVAL)

    @staticmethod
    def _cut(queue: asyncio.Queue[Event | None]) -> None:
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


def _text(event: Event) -> bytes:
    data = json.dumps(event.to_json(), separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.action}\ndata: {data}\n\n".encode()
