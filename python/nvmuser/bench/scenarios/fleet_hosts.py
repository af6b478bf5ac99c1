"""Several hosts with real targets on one machine: declared from nothing, again, one by one; and without etcd."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.etcd import Etcd
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.scenarios.fleet_evict import evict
from nvmuser.bench.scenarios.fleet_outage import outage
from nvmuser.errors import TargetError, summary
from nvmuser.fleet import membership
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.session import Session, opened, session
from nvmuser.fleet.settings import FleetSettings
from nvmuser.hostfs import host_identity
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.model.spec import Spec, difference
from nvmuser.model.where import Where
from nvmuser.supervisor.control import local_actor
from nvmuser.supervisor.spdk import Options

if TYPE_CHECKING:
    from nvmuser.bench.scenarios.fleet import FleetPlan

_FLEET = "bench"
_VOLUME_BYTES = 64 << 20


async def measure(root: Path, etcd: Etcd, plan: FleetPlan, progress: Progress) -> dict[str, Any]:
    """The figures of a plan's hosts.

    :raises NvmuserError: something was refused.
    """
    names = [f"h{number + 1}" for number in range(plan.hosts)]
    settings = FleetSettings(_FLEET, "", (etcd.url,))
    async with opened(settings) as client:
        await membership.init(client, FleetKeys(_FLEET))
    async with contextlib.AsyncExitStack() as stack:
        progress.step(f"starting {plan.hosts} hosts")
        hosts = [await stack.enter_async_context(_host(root / name, name, etcd.url)) for name in names]
        one = await stack.enter_async_context(session(settings))
        await _until_live(one, plan.hosts)
        found = await _declared(one, names, plan, progress)
        if plan.outage:
            progress.step(f"{plan.outage:g} s without etcd")
            states = {name: host.state for name, host in zip(names, hosts, strict=True)}
            found["outage"] = await outage(one, states, etcd, plan.outage)
        if plan.hosts > 1:
            progress.step("a host loses its power")
            found["evict_s"] = await evict(one, root, dict(zip(names, hosts, strict=True)))
    return found


@contextlib.asynccontextmanager
async def _host(root: Path, name: str, url: str) -> Any:
    """A supervisor with a target, which has joined."""
    async with Deployment.start(root, Options(profile="balanced")) as deployment:
        settings, state = FleetSettings(_FLEET, name, (url,)), deployment.state
        identity = host_identity.load(state).id
        joined, _ = await membership.join(settings, identity, Desired(), local_actor(), adopt=False)
        joined.save(state)
        settings.save(state)
        await deployment.control.call("follow_fleet")
        yield deployment


async def _until_live(one: Session, count: int) -> None:
    while len((await one.view()).live) < count:  # noqa: ASYNC110 (others' doing)
        await asyncio.sleep(0.05)


async def _declared(one: Session, names: list[str], plan: FleetPlan, progress: Progress) -> dict[str, Any]:
    objects, wheres = list[Volume | Controller](), dict[Key, Where]()
    for name in names:
        for number in range(plan.controllers):
            volume = Volume(f"{name}-{number}", "null", size=_VOLUME_BYTES, volatile=True)
            controller = Controller(volume.name, (Namespace(volume.name),), volatile=True)
            objects += [volume, controller]
            wheres[controller.key] = Where(name)
    progress.step(f"apply of {len(objects)} objects on {len(names)} hosts")
    applied = await _timed(one, tuple(objects), wheres)
    again = await _timed(one, tuple(objects), wheres)
    progress.step(f"{plan.changes} single changes")
    took = [await _single(one, names[number % len(names)], number) for number in range(plan.changes)]
    listing = await one.client.listing(one.keys.followed)
    ordered = sorted(took)
    return {
        "apply_s": applied,
        "reapply_s": again,
        "change_p50_s": ordered[len(ordered) // 2],
        "change_p99_s": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        "object_bytes": max(len(item.value) for item in listing.items.values()),
    }


async def _timed(one: Session, objects: tuple[Volume | Controller, ...], wheres: dict[Key, Where]) -> float:
    """As `nvmuser apply`: what there is, what differs, and until all hosts have carried it out."""
    began = time.monotonic()
    change = difference((await one.view()).desired(), Spec(objects, {}, {}), prune=False, wipe=False)
    if change.keys:
        outcome = await one.change(change, local_actor(), wheres, "")
        if outcome.problems or outcome.pending:
            raise TargetError(summary(outcome.problems) or "a target has ended meanwhile")
    return time.monotonic() - began


async def _single(one: Session, host: str, number: int) -> float:
    """A controller more on a host. Returns the seconds until its socket is served."""
    name = f"single-{number}"
    volume = Volume(name, "null", size=_VOLUME_BYTES, volatile=True)
    began = time.monotonic()
    new = (volume, Controller(name, (Namespace(name),), volatile=True))
    await one.change(Change(create=new), local_actor(), {}, host)
    return time.monotonic() - began
