"""Waits for the end of rebuilds, so that a member is known to have all of the data as soon as it does.

Owns one task. What is recorded is what `nvmuser.reconcile.mirrors` says.
"""

from __future__ import annotations

import asyncio

from nvmuser.errors import RpcError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.reconcile import mirrors
from nvmuser.reconcile.actual import Actual, query
from nvmuser.reconcile.calls import Problem
from nvmuser.rpc.client import Client
from nvmuser.store import Store

_LOOK_EACH_S = 1.0


class Rebuilds:
    """The mirrors of one store that are being rebuilt."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None

    def watch(self, rpc: Client, actual: Actual) -> None:
        """Record the end of what is being rebuilt now. Nothing happens when nothing is, or it is watched already."""
        if any(raid.rebuilding for raid in actual.raids.values()) and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._until_ended(rpc))

    def stop(self) -> None:
        """May be called again."""
        if self._task:
            self._task.cancel()

    def note(self, actual: Actual) -> Desired:
        """Record which members miss writes now. Returns what is wanted."""
        desired = self._store.load()
        if not mirrors.noted(desired, actual):
            return desired
        with self._store.transaction():
            self._store.put(mirrors.noted(self._store.load(), actual))
        return self._store.load()

    async def degrade(self, rpc: Client, actual: Actual) -> tuple[frozenset[Key] | None, dict[Key, Problem]]:
        """Record which members will miss writes, where a mirror waits for them and may do without.

        Returns the keys of these mirrors, and what is wrong with others that wait; None: more has come since `actual`.
        """
        if not mirrors.waiting(self._store.load(), actual):
            return frozenset(), {}
        # SPDK may still be looking at what has come, and find a pool that a member is in.
        await rpc.call("bdev_wait_for_examine")
        now = await query(rpc)
        if now.bdevs.keys() != actual.bdevs.keys() or now.raids != actual.raids:
            return None, {}
        return await asyncio.to_thread(self._degrade, now)

    def _degrade(self, actual: Actual) -> tuple[frozenset[Key], dict[Key, Problem]]:
        with self._store.transaction():
            entries, refused = mirrors.degraded(self._store.load(), actual)
            self._store.put(entries)
        return frozenset(entry.object.key for entry in entries), refused

    async def _until_ended(self, rpc: Client) -> None:
        rebuilding = True
        while rebuilding:
            await asyncio.sleep(_LOOK_EACH_S)
            try:
                actual = await query(rpc)
            except RpcError:
                return  # the next target is looked at when it is there
            rebuilding = any(raid.rebuilding for raid in actual.raids.values())
            await asyncio.to_thread(self.note, actual)
