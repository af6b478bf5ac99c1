"""Why SPDK refused a call, in words that lead a person out: where its own message does not name the cause.

Owns the text of a call's failure. What follows from a failure is `nvmuser.reconcile.engine`'s.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping

from nvmuser.errors import NvmuserError, RpcError, RpcServerError
from nvmuser.hostfs import host_identity, limits
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Pool, Remote, Volume
from nvmuser.model.sizes import format_size
from nvmuser.paths import StateDir
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.calls import Call, Problem
from nvmuser.reconcile.remotes import why_not
from nvmuser.rpc.client import Client

_LOST = "not there: what it lies on is missing, or does not hold it any more"

FAILED_BELOW = "waits for what failed below it"


async def explain(call: Call, error: NvmuserError, desired: Desired, state: StateDir, rpc: Client) -> str:
    """As `reason`; a remote that could not be attached is asked itself, and SPDK what a full pool has."""
    entry = desired.entries.get(call.object)
    if call.needs.path and entry and isinstance(entry.object, Remote):
        host = host_identity.load(state)
        if found := await why_not(entry.object, *call.needs.path, host):
            return found
    text = reason(call, error)
    # ENOMEM is also what SPDK answers where all pages of metadata of a pool are in use (lib/blob/blobstore.c).
    full = _is(error, errno.ENOSPC) or _is(error, errno.ENOMEM)
    if full and entry and isinstance(entry.object, Volume) and entry.object.pool:
        text += await _room(entry.object, desired, rpc)
    return text


async def _room(volume: Volume, desired: Desired, rpc: Client) -> str:
    """What is free in a volume's pool, and the way out; empty where SPDK does not answer."""
    pool = desired.get(Key("pool", volume.pool))
    assert isinstance(pool, Pool)
    try:
        (store,) = await rpc.call("bdev_lvol_get_lvstores", {"lvs_name": pool.in_spdk})
    except RpcError:
        return ""
    free, total = (store[field] * store["cluster_size"] for field in ("free_clusters", "total_data_clusters"))
    text = f": pool {volume.pool} has {format_size(free)} free of {format_size(total)}"
    if free >= volume.size:
        return f"{text}, but no room for metadata: delete volumes or snapshots in it, or free space below it"
    return f"{text}; take less, grow its base {pool.base}, or pass --thin for a new volume"


def reason(call: Call, error: NvmuserError) -> str:
    """One line: what failed, why, and the way out where there is one."""
    if not isinstance(error, RpcServerError):
        return str(error)
    text = f"{call.verb} failed: {error.message} ({call.request.method})"
    if cause := _cause(call, error):
        text += f": {cause}"
    return text


def missing(
    waiting: Iterable[Key], problems: Mapping[Key, Problem], desired: Desired, actual: Actual
) -> dict[Key, Problem]:
    """Why what waits does not come, as far as can be seen, for all of it that has no problem of its own."""

    def fails(key: Key) -> bool:
        entry = desired.entries.get(key)
        return key in problems or (entry is not None and any(map(fails, entry.object.depends_on)))

    return {
        key: Problem(key, FAILED_BELOW if fails(key) else _absent(key, desired, actual))
        for key in waiting
        if key not in problems
    }


def _absent(key: Key, desired: Desired, actual: Actual) -> str:
    entry = desired.entries.get(key)
    wanted = entry.object if entry else None
    remote = desired.entries.get(Key("remote", wanted.remote)) if isinstance(wanted, Volume) and wanted.remote else None
    if remote and isinstance(wanted, Volume) and backends.present(remote.object, desired, actual):
        return f"remote {wanted.remote} has no namespace {wanted.remote_nsid}"
    return _LOST


def is_transient(error: NvmuserError) -> bool:
    """Did SPDK refuse only for the moment? The same call may be made again."""
    return _is(error, errno.EAGAIN)


def _is(error: NvmuserError, number: int) -> bool:
    """Some of SPDK's methods answer with the number, others with its text."""
    return isinstance(error, RpcServerError) and (error.code == -number or error.message.endswith(os.strerror(number)))


def _cause(call: Call, error: RpcServerError) -> str:
    if call.needs.events and (events := _events()) and events.exhausted:
        return f"no events for asynchronous I/O are left for its files: {events}: {events.fix}"
    if call.object.kind == "controller" and call.verb == "create" and "exist" not in error.message:
        return "the target was started with room for fewer controllers: `nvmuser target restart`"
    return ""


def _events() -> limits.AioEvents | None:
    try:
        return limits.aio_events()
    except OSError:
        return None
