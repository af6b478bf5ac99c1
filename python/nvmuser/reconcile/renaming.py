"""Another name for an object, recorded at once with everything that refers to it, and carried out.

SPDK goes on as it is, but for a controller: its socket moves to where its name says, for which its caller makes sure
that no guest is connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from nvmuser.errors import RpcConnectionError, RpcTimeoutError
from nvmuser.hostfs import listeners
from nvmuser.model.desired import Entry
from nvmuser.model.keys import Key
from nvmuser.model.rename import renamed
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.reconcile.tidy import tidy
from nvmuser.store import Store

log = logging.getLogger(__name__)


async def rename(state: StateDir, engine: Engine, key: Key, name: str) -> Outcome:
    """Give an object another name.

    :raises NvmuserError: nothing has changed.
    """
    before, after = await asyncio.to_thread(_record, state, key, name)
    try:
        outcome = await engine.reconcile()
    except (RpcConnectionError, RpcTimeoutError) as error:
        log.warning("the target does not answer: %s", error)
        outcome = Outcome(pending=True)
    if key.kind != "controller":
        # Nothing of it waits for a target, and what is wrong with others has nothing to do with it.
        outcome = replace(outcome, pending=False, problems=())
    elif name != key.name:
        await asyncio.to_thread(tidy, state, [before], engine.desired())
    return replace(outcome, objects=(after.object.to_json(),))


def _record(state: StateDir, key: Key, name: str) -> tuple[Entry, Entry]:
    """Record it, all of it or nothing. Returns the object as it was, and as it is."""
    with contextlib.closing(Store(state.store)) as store, store.transaction():
        before = store.load()
        after = renamed(before, key, name)
        if key.kind == "controller":
            listeners.check_paths(state, name)
        store.remove(before.entries.keys() - after.entries.keys())
        store.put(entry for key, entry in after.entries.items() if entry is not before.entries.get(key))
    return before.entries[key], after.entries[Key(key.kind, name)]
