"""A host of a fleet that loses its power, on this machine: how long it takes until another one serves what it had."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.scenarios.shared_remote import Store
from nvmuser.errors import TargetError
from nvmuser.fleet.evacuation import evacuate
from nvmuser.fleet.session import Session
from nvmuser.model.where import Where
from nvmuser.supervisor.control import local_actor

_DISK = "evicted"
_PATIENCE_S = 60.0
_LOOK_S = 0.05


async def evict(one: Session, root: Path, hosts: Mapping[str, Deployment]) -> float:
    """Kill all of the first host, and evict it. Returns the seconds from the command until a guest could connect.

    That the lease ends comes before, and is not counted.

    :raises TargetError: it did not come to another host.
    """
    first = next(iter(hosts))
    store = Store()
    await store.start(root)
    try:
        change = store.declaration(_DISK)
        await one.change(change, local_actor(), {one.key: Where(first) for one in change.create[1:]}, "")
        status = await hosts[first].control.call("status")
        for part in ("supervisor", "target", "endpoint"):
            os.kill(status[part]["pid"], signal.SIGKILL)
        async with asyncio.timeout(_PATIENCE_S):
            while first in (await one.view()).live:  # noqa: ASYNC110 (etcd's doing)
                await asyncio.sleep(_LOOK_S)
        began = time.monotonic()
        done = await evacuate(
            one, first, local_actor(), force=True, only=lambda group: any(key.name == _DISK for key in group)
        )
        took = time.monotonic() - began
        to = next(iter(done.moved.values()), "")
        if not to or not hosts[to].state.socket(_DISK).exists():
            raise TargetError("; ".join(done.stayed.values()) or f"{_DISK} is not served on {to}")
        return took
    finally:
        await store.stop()
