"""The one door to the supervisor, and the way of commands to the engine: through it, or straight to the store.

Owns that choice, and what is said when there is no supervisor. A supervisor that lives is the only executor, so that
two commands never interleave half a change. The engine is imported where a command needs one of its own: with all that
it knows, that takes as long as the rest of a command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from nvmuser.errors import (
    ConflictError,
    RpcConnectionError,
    RpcError,
    RpcServerError,
    StaleError,
    TargetNotRunning,
    UsageError,
)
from nvmuser.fleet.records import KINDS as FLEET_KINDS
from nvmuser.fleet.settings import FleetSettings
from nvmuser.hostfs import permissions
from nvmuser.hostfs.sockets import answers
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject
from nvmuser.paths import DEFAULT_TARGET, StateDir
from nvmuser.reconcile.actual import Actual, merged, query
from nvmuser.reconcile.outcome import Outcome
from nvmuser.rpc.client import Client
from nvmuser.rpc.server import INVALID_PARAMS, REQUEST_MAX
from nvmuser.store import Store
from nvmuser.store.events import Actor, acting
from nvmuser.supervisor.process import is_running
from nvmuser.supervisor.remote import Remote

_DEADLINE = 60.0


def local_actor() -> Actor:
    """Whoever runs this process."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Actor(f"user {name}", "command line")


async def _call_as(client: Client, actor: Actor, method: str, params: dict[str, Any]) -> Any:
    """Call a method that changes something. A supervisor of an older version does not ask who does it."""
    try:
        return await client.call(method, params | {"by": actor.to_json()}, timeout=None)
    except RpcServerError as error:
        if error.code != INVALID_PARAMS:
            raise
    return await client.call(method, params, timeout=None)


async def submit(state: StateDir, change: Change, actor: Actor | None = None, client: Client | None = None) -> Outcome:
    """Change what is wanted. `Outcome.pending` when it takes effect only with the next target.

    Where this host belongs to a fleet, that is changed, and this host carries it out as every other would.

    :param actor: who does it; None: the user of this process.
    :param client: a connection to the supervisor, where there is one already.
    :raises NvmuserError: nothing has changed.
    """
    if isinstance(state, Remote):
        return await asyncio.to_thread(state.submit, change)
    actor = actor or local_actor()
    if (settings := FleetSettings.load(state)) and any(key.kind in FLEET_KINDS for key in change.keys):
        from nvmuser.fleet.session import submit as submit_to_fleet

        return await submit_to_fleet(settings, change, actor, default=settings.host)
    async with contextlib.nullcontext(client) if client else supervisor(state) as client:
        if client:
            return Outcome.from_json(await _call_as(client, actor, "change", {"change": change.to_json()}))
    from nvmuser.reconcile.engine import Engine

    permissions.check_ours(state)
    with contextlib.closing(Engine(state)) as engine:
        if lost := [controller for controller in engine.losses(change) if answers(state.socket(controller.name))]:
            raise _taken_over_first(lost[0].key, ", or pass --force")
        with acting(actor):
            return await engine.change(change)


async def alter(state: StateDir, alteration: Callable[[Desired], AnyObject], *, force: bool = False) -> Outcome:
    """Change one object, starting from how it is: `alteration` says what comes of it.

    :param force: also when a guest that runs loses something by it.

    Two that do so at once do not undo each other: who comes second starts from what the first has left.

    :raises NvmuserError: nothing has changed.
    """
    while True:
        desired = load(state)
        after = alteration(desired)
        try:
            return await submit(state, Change(update=(after,), expect=(desired.get(after.key),), force=force))
        except StaleError:
            continue


async def rename(state: StateDir, key: Key, name: str, actor: Actor | None = None) -> Outcome:
    """Give an object another name.

    :param actor: who does it; None: the user of this process.
    :raises NvmuserError: nothing has changed.
    """
    if isinstance(state, Remote):
        return await asyncio.to_thread(state.rename, key, name)
    actor = actor or local_actor()
    if settings := FleetSettings.load(state):
        raise UsageError(f"{key.words}: keeps its name while it is in fleet {settings.fleet}: names are all hosts'")
    async with supervisor(state) as client:
        if client:
            return Outcome.from_json(await _call_as(client, actor, "rename", {"key": str(key), "name": name}))
    if key.kind == "controller" and answers(state.socket(key.name)):
        raise _taken_over_first(key)
    from nvmuser.reconcile import renaming
    from nvmuser.reconcile.engine import Engine

    permissions.check_ours(state)
    with contextlib.closing(Engine(state)) as engine, acting(actor):
        return await renaming.rename(state, engine, key, name)


async def roll_back(state: StateDir, key: Key, snapshot: Key, *, wipe: bool) -> Outcome:
    """Make a volume in Ceph what a snapshot of it is.

    :param wipe: what was written since may be lost.
    :raises NvmuserError: it has not been rolled back.
    """
    params = {"key": str(key), "snapshot": str(snapshot), "wipe": wipe}
    async with supervisor(state) as client:
        if client:
            return Outcome.from_json(await client.call("roll_back", params, timeout=None))
    from nvmuser.reconcile import rollback
    from nvmuser.reconcile.engine import Engine

    permissions.check_ours(state)
    with contextlib.closing(Engine(state)) as engine:
        return await rollback.roll_back(engine, key, snapshot, wipe=wipe)


async def snapshot_together(state: StateDir, controller: str, name: str) -> Outcome:
    """Make snapshots of all volumes of a controller at one moment.

    :raises NvmuserError: there are none of these snapshots.
    """
    if settings := FleetSettings.load(state):
        raise UsageError(f"controller {controller}: is in fleet {settings.fleet}, which makes each snapshot by itself")
    params = {"controller": controller, "name": name}
    async with supervisor(state) as client:
        if client:
            return Outcome.from_json(await _call_as(client, local_actor(), "snapshot_together", params))
    raise TargetNotRunning("the target is not running; start it with `nvmuser target start`")


async def take_back(state: StateDir, name: str) -> None:
    """Open the volumes of a controller whose guest does not go on elsewhere; with the next target, if there is none.

    :raises NvmuserError: they cannot be opened.
    """
    async with supervisor(state) as client:
        if client:
            await client.call("take_back", {"name": name}, timeout=None)
            return
    from nvmuser.reconcile import handover

    permissions.check_ours(state)
    handover.record(state, name, away=False)


def _taken_over_first(key: Key, way_out: str = "") -> ConflictError:
    return ConflictError(
        f"{key.words}: a guest may be connected: the supervisor is gone, but not what it has started; `nvmuser target "
        f"start` takes over, then try again{way_out}"
    )


@contextlib.asynccontextmanager
async def supervisor(state: StateDir) -> AsyncIterator[Client | None]:
    """A connection to the supervisor, or None when there is none.

    :raises AccessError: there may be one, and this user may not ask it.
    """
    async with contextlib.AsyncExitStack() as stack:
        if client := await _connect(state):
            await stack.enter_async_context(client)
        yield client


async def _connect(state: StateDir) -> Client | None:
    path = state.control_socket
    try:
        return await Client.connect(path, timeout=_DEADLINE, max_request=REQUEST_MAX)
    except RpcConnectionError as error:
        if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return None
        raise


@contextlib.asynccontextmanager
async def connected(state: StateDir) -> AsyncIterator[Client]:
    """A connection to the supervisor. Calls have a minute, if they do not say otherwise.

    :raises TargetNotRunning: there is none.
    """
    async with supervisor(state) as client:
        if client is None:
            raise TargetNotRunning(_why_not(state))
        yield client


async def ask(
    state: StateDir,
    method: str,
    params: dict[str, Any] | None = None,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 (of the call alone)
) -> Any:
    """Call a method of the supervisor.

    :param timeout: seconds; None waits as long as it takes.
    :raises TargetNotRunning: there is none.
    """
    if isinstance(state, Remote):
        return await asyncio.to_thread(state.ask, method, params or {})
    async with connected(state) as client:
        return await client.call(method, params, timeout=timeout)


def live_processes(state: StateDir) -> list[str]:
    """Which of target and endpoint live, with or without a supervisor."""
    return sorted({pid_file.stem.partition("-")[0] for pid_file in state.run.glob("*.pid") if is_running(pid_file)})


def _why_not(state: StateDir) -> str:
    """What is the matter when no supervisor answers, and the way out."""
    if live := live_processes(state):
        return (
            f"{state.root}: the supervisor is gone, {' and '.join(live)} live, and guests go on; "
            "`nvmuser target start` takes over"
        )
    return f"the target is not running on {state.root}; `nvmuser target start` starts one"


def sockets(state: StateDir) -> dict[str, Path]:
    """The RPC sockets of all targets, by their names."""
    names = {DEFAULT_TARGET, *(target.name for target in load(state).targets())}
    return {name: state.rpc_socket_of(name) for name in sorted(names)}


@contextlib.asynccontextmanager
async def spdk(state: StateDir) -> AsyncIterator[dict[str, Client]]:
    """A connection to each target that answers, by its name. For commands that look: nothing is changed."""
    async with contextlib.AsyncExitStack() as stack:
        found: dict[str, Client] = {}
        for name, path in sockets(state).items():
            with contextlib.suppress(RpcError):
                if await asyncio.to_thread(answers, path):
                    found[name] = await stack.enter_async_context(await Client.connect(path))
        yield found


async def actual(state: StateDir) -> Actual | None:
    """What SPDK has, all targets together; None where none answers, or where it is another host's."""
    if isinstance(state, Remote):
        return None
    found = []
    async with spdk(state) as targets:
        for rpc in targets.values():
            with contextlib.suppress(RpcError):
                found.append(await query(rpc))
    return merged(found) if found else None


@contextlib.contextmanager
def opened(state: StateDir) -> Iterator[Store | None]:
    """The store, to be read; None where nobody has used the state directory yet, which stays so.

    :raises AccessError: this user may not read it.
    """
    with permissions.explained():
        exists = state.store.exists()
    if not exists:
        yield None
        return
    with Store(state.store) as store:
        yield store


def load(state: StateDir) -> Desired:
    """What is wanted. A state directory that nobody has used yet is empty, and stays so.

    :raises AccessError: this user may not read it.
    """
    if isinstance(state, Remote):
        return state.load()
    with opened(state) as store:
        return store.load() if store else Desired()
