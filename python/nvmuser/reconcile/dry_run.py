"""What a change would lead to, as far as can be known without doing anything.

It opens no store of its own: there need be none, and none is made.
"""

from __future__ import annotations

from typing import Any

from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.paths import StateDir
from nvmuser.reconcile.actual import Actual, query
from nvmuser.reconcile.declare import declared
from nvmuser.reconcile.plan import plan
from nvmuser.reconcile.remotes import explore
from nvmuser.rpc.client import Client


async def dry_run(desired: Desired, change: Change, state: StateDir, rpc: Client | None) -> list[list[dict[str, Any]]]:
    """The calls to SPDK, in waves.

    :param rpc: the target's; None while there is none.
    :raises NvmuserError: the change cannot be.
    """
    after = declared(desired, change, state)
    actual = await query(rpc) if rpc else Actual()
    routes = await explore(after, actual, state)
    waves = plan(after, actual, state.target_dir, routes=routes).waves()
    return [[{"method": call.request.method, "params": dict(call.request.params)} for call in wave] for wave in waves]
