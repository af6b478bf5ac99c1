"""Bases that are there while what SPDK keeps on them is not: opened once more, since SPDK looks only when one comes.

As when the file system was full at the start, so that a pool could not be opened, and there is room again.
"""

from __future__ import annotations

import asyncio

from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual, query
from nvmuser.rpc.client import Client
from nvmuser.rpc.methods import Request


async def reopen(rpc: Client, desired: Desired, actual: Actual) -> bool:
    """Close the bases of what is missing; the next round opens them again. False: there is none.

    A refusal leaves the base as it was, and what is on it is reported as missing.

    :raises RpcError: SPDK does not answer.
    """
    if not to_close(desired, actual):
        return False
    # SPDK may still be looking at what has come.
    await rpc.call("bdev_wait_for_examine")
    requests = to_close(desired, await query(rpc))
    replies = [rpc.post(request.method, request.params) for request in requests]
    return any(
        not isinstance(result, BaseException) for result in await asyncio.gather(*replies, return_exceptions=True)
    )


def to_close(desired: Desired, actual: Actual) -> list[Request]:
    """The calls that close bdevs which nobody has open, and which lose nothing by it."""
    missing = [
        entry.object
        for entry in desired.entries.values()
        if entry.provisioned
        and not entry.deleting
        and backends.made_once(entry.object)
        and not backends.present(entry.object, desired, actual)
    ]
    keys = {key: None for one in missing for key in one.depends_on if key.kind == "volume"}
    shown = {namespace.bdev for subsystem in actual.subsystems.values() for namespace in subsystem.namespaces}
    return [request for key in keys if (request := _close(key, desired, actual, shown))]


def _close(key: Key, desired: Desired, actual: Actual, shown: set[str]) -> Request | None:
    volume = desired.get(key)
    if not isinstance(volume, Volume) or not backends.REGISTRY[volume.backend].reopens:
        return None
    bdev = backends.find(volume, desired, actual)
    if bdev is None or bdev.claimed or bdev.name in shown or not backends.is_ours(volume, bdev, desired, actual):
        return None
    return backends.delete(volume, desired)
