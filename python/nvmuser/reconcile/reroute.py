"""Remotes by name whose address has changed while a path to them is down: which can be reached at another one now.

SPDK has an address, and tries that for ever. What moves the path is the next act of the engine.
"""

from __future__ import annotations

from nvmuser.model.desired import Desired
from nvmuser.model.objects import Remote
from nvmuser.paths import StateDir
from nvmuser.reconcile import attachments
from nvmuser.reconcile.actual import Actual, query_remotes
from nvmuser.reconcile.draft import Draft
from nvmuser.reconcile.remotes import answering, explore
from nvmuser.rpc.client import Client


async def moved(desired: Desired, rpc: Client, state: StateDir) -> list[Remote]:
    """Remotes with a path that has no connection, and whose name leads to where one is taken.

    :raises SetupError: who we are to remotes is not known.
    :raises RpcError: SPDK does not answer.
    """
    by_name = [remote for remote in desired.remotes() if any(not path.literal for path in remote.paths)]
    if not by_name:
        return []
    actual = await query_remotes(rpc)
    lost = [remote for remote in by_name if _is_down(remote, actual)]
    routes = await explore(Desired({remote.key: desired.entries[remote.key] for remote in lost}), actual, state)
    found: list[Remote] = []
    for remote in lost:
        draft = Draft()
        attachments.ensure(remote, actual, routes, draft)
        wanted = [call.needs.path for call in draft.calls if call.needs.path]
        # Attached where nothing listens, it would hold up every other change for as long as SPDK tries.
        if wanted and all([await answering((address,), port) for address, port in wanted]):
            found.append(remote)
    return found


def _is_down(remote: Remote, actual: Actual) -> bool:
    present = actual.remotes.get(remote.in_spdk)
    return present is not None and bool(present.down)
