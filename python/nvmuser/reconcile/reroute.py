"""Remotes that can be reached again: by name, where a path is down and the name leads elsewhere now; those that could
not be attached.

SPDK has an address, and tries that for ever; what was not attached, it does not try. What does is the next act of the
engine.
"""

from __future__ import annotations

from collections.abc import Collection

from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
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


async def reachable(desired: Desired, failing: Collection[Key], rpc: Client, state: StateDir) -> list[Remote]:
    """Remotes that are not attached, and where a path takes a connection now.

    :param failing: objects that something was wrong with.
    :raises SetupError: who we are to remotes is not known. :raises RpcError: SPDK does not answer.
    """
    if not (lost := [remote for remote in desired.remotes() if remote.key in failing]):
        return []
    actual = await query_remotes(rpc)
    absent = [remote for remote in lost if remote.in_spdk not in actual.remotes]
    routes = await explore(Desired({remote.key: desired.entries[remote.key] for remote in absent}), actual, state)

    async def answers(remote: Remote) -> bool:
        return any([await answering(routes.to(path), path.port) for path in remote.paths])

    return [remote for remote in absent if await answers(remote)]


def _is_down(remote: Remote, actual: Actual) -> bool:
    present = actual.remotes.get(remote.in_spdk)
    return present is not None and bool(present.down)
