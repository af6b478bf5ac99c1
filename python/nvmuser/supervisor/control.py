"""How commands reach the engine: through the supervisor while it lives, else straight to the store.

Owns that choice alone. A supervisor that lives is the only executor, so that two commands never interleave
half a change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from nvmuser.errors import ConflictError, NvmuserError, StaleError, TargetNotRunning
from nvmuser.hostfs import permissions
from nvmuser.hostfs.sockets import answers
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import AnyObject
from nvmuser.paths import StateDir
from nvmuser.reconcile.actual import Actual, look
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.rpc.client import Client
from nvmuser.rpc.server import REQUEST_MAX
from nvmuser.store import Store


async def submit(state: StateDir, change: Change) -> Outcome:
    """Change what is wanted. `Outcome.pending` when it takes effect only with the next target.

    :raise NvmuserError: nothing has changed.
    """
    async with supervisor(state) as client:
        if client:
            return Outcome.from_json(await client.call("change", {"change": change.to_json()}, timeout=None))
    with contextlib.closing(Engine(state)) as engine:
        if lost := [one for one in engine.losses(change) if answers(state.socket(one.name))]:
            raise ConflictError(
                f"controller {lost[0].name}: a guest may be connected: the supervisor is gone, but not what it has "
                "started; `nvmuser target start` takes over, then try again, or pass --force"
            )
        return await engine.change(change)


async def alter(state: StateDir, alteration: Callable[[Desired], AnyObject], *, force: bool = False) -> Outcome:
    """Change one object, starting from how it is: `alteration` says what comes of it.

    :param force: also when a guest that runs loses something by it.

    Two that do so at once do not undo each other: who comes second starts from what the first has left.

    :raise NvmuserError: nothing has changed.
    """
    while True:
        desired = load(state)
        after = alteration(desired)
        try:
            return await submit(state, Change(update=(after,), expect=(desired.get(after.key),), force=force))
        except StaleError:
            continue


@contextlib.asynccontextmanager
async def supervisor(state: StateDir) -> AsyncIterator[Client | None]:
    """A connection to the supervisor, or None when there is none."""
    if not answers(state.control_socket):
        yield None
        return
    async with await Client.connect(state.control_socket, max_request=REQUEST_MAX) as client:
        yield client


async def ask(state: StateDir, method: str, params: dict[str, Any] | None = None) -> Any:
    """Call a method of the supervisor. :raise TargetNotRunning: there is none."""
    async with supervisor(state) as client:
        if client is None:
            raise TargetNotRunning("the target is not running; start it with `nvmuser target start`")
        return await client.call(method, params, timeout=None)


async def actual(state: StateDir) -> Actual | None:
    """What SPDK has; None where no target answers. For commands that show it: nothing is changed."""
    if not await asyncio.to_thread(answers, state.rpc_socket):
        return None
    try:
        async with await Client.connect(state.rpc_socket) as rpc:
            return await look(rpc)
    except NvmuserError:
        return None


def load(state: StateDir) -> Desired:
    """What is wanted. A state directory that nobody has used yet is empty, and stays so.

    :raises AccessError: this user may not read it.
    """
    with permissions.explained():
        if not state.store.exists():
            return Desired()
    with Store(state.store) as store:
        return store.load()
