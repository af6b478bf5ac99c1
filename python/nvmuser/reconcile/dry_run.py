"""What a change would lead to, as far as can be known without doing anything.

It opens no store of its own: there need be none, and none is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.placement import on
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual, query
from nvmuser.reconcile.declare import declared
from nvmuser.reconcile.declare_images import completed
from nvmuser.reconcile.plan import plan
from nvmuser.reconcile.remotes import explore
from nvmuser.rpc.client import Client


async def dry_run(
    desired: Desired, change: Change, state: StateDir, targets: Mapping[str, Client]
) -> list[list[dict[str, Any]]]:
    """The calls to SPDK, in waves; those to a target with a name say so.

    :param targets: those that run.
    :raises NvmuserError: the change cannot be.
    """
    after = declared(desired, await asyncio.to_thread(completed, change, desired), state)
    names = {DEFAULT_TARGET, *(target.name for target in after.targets())}
    found: list[list[dict[str, Any]]] = []
    for name in sorted(names, key=lambda name: (name != DEFAULT_TARGET, name)):
        waves = await _of_target(name, after, state, targets.get(name))
        found += [[] for _ in range(len(waves) - len(found))]
        for wave, calls in zip(found, waves, strict=False):
            wave += calls
    return found


async def _of_target(name: str, after: Desired, state: StateDir, rpc: Client | None) -> list[list[dict[str, Any]]]:
    actual = await query(rpc) if rpc else Actual()
    part = on(after, name)
    leaving = {
        key: replace(entry, deleting=True)
        for key, entry in after.entries.items()
        if key not in part.entries and backends.present(entry.object, after, actual)
    }
    routes = await explore(part, actual, state)
    whole = Desired({**part.entries, **leaving}) if leaving else part
    waves = plan(whole, actual, state.target_dir, routes=routes, leaving=frozenset(leaving)).waves()
    target = {} if name == DEFAULT_TARGET else {"target": name}
    return [
        [{**target, "method": call.request.method, "params": dict(call.request.params)} for call in wave]
        for wave in waves
    ]
