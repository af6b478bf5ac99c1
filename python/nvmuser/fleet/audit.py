"""The log of a fleet's changes: each was written in the transaction of its change."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from nvmuser.fleet.etcd.client import VOID, Item
from nvmuser.fleet.etcd.watch import Changes, Watcher
from nvmuser.fleet.records import decode
from nvmuser.fleet.session import session
from nvmuser.fleet.settings import FleetSettings


async def last(settings: FleetSettings, count: int) -> list[dict[str, Any]]:
    """The last events, in the order in which they came to be.

    :raises FleetError: etcd does not answer.
    """
    async with session(settings) as one:
        return [_event(item) for item in await one.client.last(one.keys.events, count) if item.value != VOID]


async def followed(settings: FleetSettings, count: int) -> AsyncIterator[dict[str, Any]]:
    """The last events, and those that come.

    :raises FleetError: etcd does not answer at the beginning.
    """
    async with session(settings) as one:
        shown = await one.client.last(one.keys.events, count)
        for item in shown:
            if item.value != VOID:
                yield _event(item)
        latest = shown[-1].revision if shown else 0
        async with contextlib.aclosing(Watcher(one.client, one.keys.events).events()) as events:
            async for event in events:
                items = event.items if isinstance(event, Changes) else {}
                for name in sorted(items):
                    new = items[name]
                    if new and new.revision > latest and new.value != VOID:
                        yield _event(new)


def _event(item: Item) -> dict[str, Any]:
    return {"id": item.key.rpartition("/")[2], **decode(item.key, item.value)}
