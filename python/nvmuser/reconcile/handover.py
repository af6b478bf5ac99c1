"""A controller whose guest moves between hosts: its volumes are closed where it leaves, and opened where it arrives.

Owns the record of whose they are (`Controller.away`), and the description by which both hosts know that they speak of
the same controller. When they change hands is the guest's migration's to decide (`nvmf_vfio.migration`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from nvmuser.errors import ConflictError, NvmuserError, TargetError, summary
from nvmuser.hostfs.sockets import answers
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import query
from nvmuser.reconcile.engine import Engine
from nvmuser.store import Store

_SHARED = ("file", "remote", "rbd")
"""Backends of volumes that two hosts can reach."""


def volumes_of(desired: Desired, controller: Controller) -> list[Volume]:
    """What a controller shows, in the order of its namespaces.

    :raises ConflictError: one of them cannot be given to another host.
    """
    volumes = [one for one in map(desired.get, controller.depends_on) if isinstance(one, Volume)]
    for volume in volumes:
        if volume.backend not in _SHARED:
            raise ConflictError(
                f"controller {controller.name}: volume {volume.name} ({volume.backend}) cannot move between hosts; "
                "only what both hosts reach can: files on storage that they share, remotes, images in Ceph"
            )
    return volumes


def identity(desired: Desired, controller: Controller) -> dict[str, Any]:
    """Who a controller is, and what of its volumes a guest has seen.

    :raises ConflictError: one of them cannot be given to another host.
    """
    fields = ("uuid", "nguid", "eui64", "size", "block_size")
    volumes = volumes_of(desired, controller)
    shown = zip(controller.namespaces, volumes, strict=True)
    namespaces = [{"nsid": ns.nsid} | {field: getattr(volume, field) for field in fields} for ns, volume in shown]
    return {"nqn": controller.nqn, "serial": controller.serial, "cntlid": controller.cntlid, "namespaces": namespaces}


async def give_away(state: StateDir, engine: Engine, name: str) -> None:
    """Record that the volumes of a controller are another host's, and close them. May be called again.

    :raises RpcError: the target was lost meanwhile, or does not answer.
    :raises NvmuserError: they are not closed; what was recorded stays, and is carried out when it can be.
    """
    await asyncio.to_thread(record, state, name, away=True)
    target = engine.desired().controller(name).target
    outcome = await engine.reconcile([target])
    keys = engine.desired().controller(name).depends_on
    if problems := [problem for problem in outcome.problems if problem.object in keys]:
        raise TargetError(f"controller {name}: {summary(problems)}")
    if await _are_open(state, engine, name, target):
        raise TargetError(f"controller {name}: the target has not closed its volumes")


async def take(state: StateDir, engine: Engine, names: Collection[str]) -> dict[str, NvmuserError]:
    """Record that the volumes of controllers are this host's, and open them. May be called again.

    Guests wait for that: nothing else is looked at, and its caller has to reconcile soon.

    :returns: for each whose volumes are not open, why; what was recorded stays, and is carried out when it can be.
    """
    recorded = await asyncio.to_thread(_recorded, state, names, away=False)
    errors = {name: found for name, found in recorded.items() if isinstance(found, NvmuserError)}
    keys = {name: found for name, found in recorded.items() if not isinstance(found, NvmuserError)}
    desired = engine.desired()
    targets = {desired.controller(name).target for name in keys}
    try:
        outcome = await engine.reconcile(targets, changed=set().union(*keys.values()), urgent=True)
    except NvmuserError as error:
        return errors | dict.fromkeys(keys, error)
    for name, own in keys.items():
        if outcome.pending:
            errors[name] = TargetError(f"controller {name}: there is no target that could open its volumes")
        elif problems := [problem for problem in outcome.problems if problem.object in own]:
            errors[name] = ConflictError(summary(problems))
    return errors


def record(state: StateDir, name: str, *, away: bool) -> set[Key]:
    """Record whose the volumes of a controller are. Returns its key and theirs.

    :raises NotFoundError: there is no such controller.
    :raises ConflictError: one of them cannot be given to another host.
    """
    found = _recorded(state, [name], away=away)[name]
    if isinstance(found, NvmuserError):
        raise found
    return found


def _recorded(state: StateDir, names: Collection[str], *, away: bool) -> dict[str, set[Key] | NvmuserError]:
    """As `record`, for several; why not, where it raises. One transaction: each waits for the disk, as does a guest."""
    found: dict[str, set[Key] | NvmuserError] = {}
    changed: list[Entry] = []
    with contextlib.closing(Store(state.store)) as store, store.transaction():
        desired = store.load()
        for name in names:
            try:
                controller = desired.controller(name)
                volumes_of(desired, controller)
            except NvmuserError as error:
                found[name] = error
                continue
            if controller.away is not away:
                changed.append(replace(desired.entries[controller.key], object=replace(controller, away=away)))
            found[name] = {controller.key, *controller.depends_on}
        store.put(changed)
    return found


async def _are_open(state: StateDir, engine: Engine, name: str, target: str) -> bool:
    """Whether the target may have them open. One that has ended has not."""
    rpc = engine.site(target).rpc
    if rpc is None:
        return answers(state.rpc_socket_of(target))
    desired, actual = engine.desired(), await query(rpc)
    shown = {namespace.bdev for subsystem in actual.subsystems.values() for namespace in subsystem.namespaces}
    for volume in volumes_of(desired, desired.controller(name)):
        bdev = backends.find(volume, desired, actual)
        # A remote's namespace is there as long as the remote is attached, and its reservation was given up.
        if bdev and (volume.backend != "remote" or bdev.name in shown):
            return True
    return False
