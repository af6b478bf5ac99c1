"""A watch that comes back: after a broken stream where it was, after a compaction with a new listing of everything.

What it yields is complete: a listing, then every change after it, in order; another listing says that changes were
missed, and what there is now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from nvmuser.errors import FleetError
from nvmuser.fleet.etcd.client import Client, Item, Listing, item
from nvmuser.fleet.etcd.connection import WATCH
from nvmuser.fleet.etcd.messages import CLASSES, DELETE

_RETRY_S = 0.5
_AGAIN_S = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changes:
    """What became of keys up to one revision, by one transaction: key → what it is now; None: deleted."""

    revision: int
    items: dict[str, Item | None]


@dataclass(frozen=True)
class Lost:
    """etcd cannot be reached; the watch goes on when it can."""

    reason: str


class _Compacted(Exception):
    """What comes next is not to be had."""


class Watcher:
    """Of a range of keys: the first, and the first one after the last. `events` is its whole life."""

    def __init__(self, client: Client, range_: tuple[bytes, bytes]) -> None:
        self._client = client
        self._start, self._end = range_
        self._next = 0
        """Revision from which on changes are missing; 0: everything is."""
        self._cluster = 0

    async def events(self) -> AsyncGenerator[Listing | Changes | Lost, None]:
        """Yield what there is, and what changes, until it is closed."""
        while True:
            try:
                if not self._next:
                    listing = await self._client.listing((self._start, self._end))
                    self._next, self._cluster = listing.revision + 1, listing.cluster
                    yield listing
                async for changes in self._stream():
                    self._next = changes.revision + 1
                    yield changes
                await asyncio.sleep(_AGAIN_S)
            except _Compacted:
                log.info("watch: changes are no longer available: listed again")
                self._next = 0
            except FleetError as error:
                yield Lost(str(error))
                await asyncio.sleep(_RETRY_S)
            except grpc.aio.AioRpcError as error:
                log.debug("watch: %s", error.details())
                self._client.connection.next_member()
                if reason := await self._away():
                    yield Lost(reason)
                await asyncio.sleep(_RETRY_S if reason else _AGAIN_S)

    async def _away(self) -> str:
        """Why no member answers; empty where one does."""
        try:
            await self._client.version()
        except FleetError as error:
            return str(error)
        return ""

    async def _stream(self) -> AsyncIterator[Changes]:
        call = self._client.connection.stream(WATCH)
        request = CLASSES["WatchCreateRequest"](
            key=self._start, range_end=self._end, start_revision=self._next, fragment=True
        )
        gathered: dict[int, dict[str, Item | None]] = {}
        try:
            await call.write(CLASSES["WatchRequest"](create_request=request))
            while (reply := await call.read()) is not grpc.aio.EOF:
                if reply.compact_revision or self._is_behind(reply.header):
                    raise _Compacted
                if reply.canceled:
                    log.info("watch: cancelled: %s", reply.cancel_reason)
                    return
                for event in reply.events:
                    changed = gathered.setdefault(event.kv.mod_revision, {})
                    changed[event.kv.key.decode()] = None if event.type == DELETE else item(event.kv)
                if not reply.fragment:
                    last = max(gathered, default=0)
                    for revision in sorted(gathered):
                        yield Changes(reply.header.revision if revision == last else revision, gathered[revision])
                    gathered = {}
        finally:
            call.cancel()

    def _is_behind(self, header: Any) -> bool:
        """It is another etcd than it was, or went back in time: it would reach our revision with other changes."""
        return bool(header.cluster_id != self._cluster or header.revision + 1 < self._next)
