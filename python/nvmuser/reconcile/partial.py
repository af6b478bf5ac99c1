"""A few objects that stand by themselves, looked at without everything else: for changes that come one after the other.

Looking at a thousand volumes takes a hundred times as long as changing one. Owns which objects stand by themselves, and
what is asked of SPDK for them; when that will do is `nvmuser.reconcile.site`'s to decide.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Collection, Mapping
from typing import Any

from nvmuser.errors import RpcServerError
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Volume
from nvmuser.reconcile.actual import Actual, Bdev, Subsystem, transports
from nvmuser.rpc.client import Client

_SIMPLE = ("file", "malloc", "null")
"""Backends whose volumes lie on nothing of SPDK's."""
_MOST = 200
"""Objects, beyond which asking for all of them is as fast."""


def touched(keys: Collection[Key], before: Desired) -> set[Key]:
    """What changes, and what that has lain on until now."""
    return {*keys, *(below for key in keys if key in before.entries for below in before.entries[key].object.depends_on)}


def part_of(desired: Desired, keys: Collection[Key]) -> Desired | None:
    """These objects, with what they lie on and what uses them; None where these are more than simple volumes and their
    controllers."""
    users: dict[Key, list[Key]] = {}
    for entry in desired.entries.values():
        for below in entry.object.depends_on:
            users.setdefault(below, []).append(entry.object.key)
    found: dict[Key, Entry] = {}
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        entry_of = desired.entries.get(key)
        if entry_of is None or key in found:
            continue
        if not _is_simple(entry_of.object) or len(found) >= _MOST:
            return None
        found[key] = entry_of
        waiting += [*entry_of.object.depends_on, *users.get(key, ())]
    return Desired(dict(sorted(found.items())))


def _is_simple(one: AnyObject) -> bool:
    if isinstance(one, Volume):
        return one.backend in _SIMPLE
    return isinstance(one, Controller) and not one.away


async def query_part(rpc: Client, part: Desired) -> Actual | None:
    """What SPDK has of these objects; None where others have to do with them.

    :raises RpcError: SPDK does not answer.
    """
    objects = [entry.object for entry in part.entries.values()]
    volumes = [one for one in objects if isinstance(one, Volume)]
    controllers = [one for one in objects if isinstance(one, Controller)]
    found, bdevs, subsystems = await asyncio.gather(
        transports(rpc),
        asyncio.gather(*(_one(rpc, "bdev_get_bdevs", {"name": volume.in_spdk}) for volume in volumes)),
        asyncio.gather(*(_one(rpc, "nvmf_get_subsystems", {"nqn": controller.nqn}) for controller in controllers)),
    )
    for volume, bdev in zip(volumes, bdevs, strict=True):
        if bdev and bdev.get("claimed") and part.entries[volume.key].deleting:
            return None  # by a subsystem that is not ours, perhaps: then it stays
    known = {bdev["name"] for bdev in bdevs if bdev}
    if any(ns["bdev_name"] not in known for one in subsystems if one for ns in one["namespaces"]):
        return None
    return Actual(
        transport=any(transport["trtype"] == "VFIOUSER" for transport in found),
        bdevs={bdev["name"]: Bdev.from_spdk(bdev) for bdev in bdevs if bdev},
        subsystems={one["nqn"]: Subsystem.from_spdk(one) for one in subsystems if one},
    )


async def _one(rpc: Client, method: str, params: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        found = await rpc.call(method, params)
    except RpcServerError as error:
        if error.code in (-errno.ENODEV, -errno.ENOENT, -errno.EINVAL):
            return None
        raise
    return dict(found[0]) if found else None
