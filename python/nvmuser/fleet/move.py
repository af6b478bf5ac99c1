"""Objects that go from one host to another: a controller with the volumes that it shows.

Planned: the host that has them closes them and gives them up, then the other one opens them. Forced: the host that has
them is not asked; the other one shuts it out, by the storage, before it opens them. If that cannot be confirmed,
nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nvmuser.errors import ConflictError, NotFoundError, StaleError, TargetError, UsageError
from nvmuser.fleet.fences import moves
from nvmuser.fleet.groups import sets
from nvmuser.fleet.journey import ENDED
from nvmuser.fleet.ownership import check_fences
from nvmuser.fleet.proposal import Proposal
from nvmuser.fleet.records import SHARED, Declared
from nvmuser.fleet.session import Session
from nvmuser.fleet.view import View, as_desired
from nvmuser.fleet.writer import BATCH
from nvmuser.model.change import Change, next_desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.outcome import Outcome
from nvmuser.store.events import Actor


async def move(session: Session, controller: str, to: str, actor: Actor, *, force: bool = False) -> Outcome:
    """Move a controller, and wait until it is there.

    :param force: the host that has it is fenced, and not asked.
    :raises ConflictError: something of it stays where it is, or cannot be fenced.
    :raises NvmuserError: nothing has moved, or the message has what did.
    """
    view = await session.view()
    mine = company(view, Key("controller", controller))
    from_ = host_of(mine)
    if from_ == to:
        return Outcome()
    check(view, mine, to)
    if not force and from_ in view.hosts and from_ not in view.live:
        raise ConflictError(
            f"host {from_} does not answer, so that it cannot give up what it may have open; --force fences it first"
        )
    return await relocate(session, view, mine, to, actor, force=force)


async def relocate(
    session: Session, view: View, before: Mapping[Key, Declared], to: str, actor: Actor, *, force: bool
) -> Outcome:
    """Move what goes together, and wait until it is there.

    :param before: of one host: see `company`.
    :raises NvmuserError: as of `move`.
    """
    check(view, before, to)
    if not force:
        _check_still(view, before)
    volumes = [one.object for one in before.values() if isinstance(one.object, Volume)]
    epochs = check_fences(view, volumes, to) if force else {}
    after: dict[Key, Declared | None] = {
        key: replace(one, host=to, force=False, seize=epochs.get(key, 0)) for key, one in before.items()
    }
    if len(after) + len(epochs) > BATCH:
        raise UsageError(f"{min(after).words}: {len(after)} objects would move at once; at most {BATCH}")
    hosts = (to,) if force else (host_of(before), to)
    proposal = Proposal(dict(before), after, {key: view.revision_of(key) for key in before}, frozenset(hosts))
    owners = {session.keys.own(one.uuid) for one in volumes if one.key in epochs}
    revision = await session.writer(actor).write(proposal, expect={name: view.revisions[name] for name in owners})
    outcome = await session.carried_out(view, hosts, revision, after)
    if mine := [problem for problem in outcome.problems if problem.object in after or problem.object.kind == "host"]:
        why = "; ".join(map(str, mine))
        if force and await _taken(session, volumes, to):
            raise TargetError(f"{why}; host {host_of(before)} is fenced, and {to} goes on trying to open it")
        await _stay(session, actor, proposal, view, hosts)
        raise TargetError(f"{why}; nothing was moved")
    return outcome


async def _taken(session: Session, volumes: list[Volume], host: str) -> bool:
    """Whether a host owns one of these by now."""
    owners = (await session.view()).owners
    return any((owner := owners.get(volume.uuid)) and owner.host == host for volume in volumes)


async def _stay(session: Session, actor: Actor, proposal: Proposal, view: View, hosts: tuple[str, ...]) -> None:
    now = await session.view()
    expect = {key: now.revision_of(key) for key in proposal.after}
    before: dict[Key, Declared | None] = {key: replace(one, seize=0) for key, one in proposal.before.items() if one}
    try:
        undone = await session.writer(actor).write(Proposal(dict(proposal.after), before, expect))
    except StaleError:
        return
    await session.carried_out(view, hosts, undone)


def host_of(objects: Mapping[Key, Declared]) -> str:
    """Where what goes together is."""
    return next(iter(objects.values())).host


def company(view: View, top: Key) -> dict[Key, Declared]:
    """An object with all that goes with it, but what many hosts reach.

    :raises NotFoundError: there is no such object.
    """
    if top not in view.objects or view.objects[top].deleting:
        raise NotFoundError(f"{top.words}: no such {top.kind}")
    return next(group for group in companies(view) if top in group)


def companies(view: View, host: str = "") -> list[dict[Key, Declared]]:
    """All that goes together.

    :param host: only what is there; empty: everywhere.
    """
    there = {
        key: one
        for key, one in view.objects.items()
        if not one.deleting and key.kind not in SHARED and host in ("", one.host)
    }
    below = {key: one.object.depends_on for key, one in there.items()}
    return [{key: there[key] for key in sorted(keys)} for keys in sets(below)]


def check(view: View, mine: Mapping[Key, Declared], to: str) -> None:
    """Check whether all of it can be on another host.

    :raises NotFoundError: there is no such host. :raises ConflictError: something of it stays where it is.
    """
    if to not in view.hosts:
        raise NotFoundError(f"host {to}: no such host; `nvmuser host list` shows those that there are")
    if view.hosts[to].cordoned:
        raise ConflictError(f"host {to}: is cordoned; `nvmuser host uncordon {to}`, or choose another")
    check_movable(mine)
    there = view.part(to)
    shared = {below for one in mine.values() for below in one.object.depends_on if below.kind in SHARED}
    there |= {key: view.objects[key] for key in shared if key in view.objects}
    next_desired(as_desired(there), Change(create=tuple(one.object for one in mine.values())), lambda volume: volume)


def _check_still(view: View, mine: Mapping[Key, Declared]) -> None:
    """:raises ConflictError: a guest is on its way with it."""
    for journey in view.journeys.values():
        for name in journey.controllers:
            if journey.state not in ENDED and Key("controller", name) in mine:
                raise ConflictError(f"controller {name}: its guest is on its way to host {journey.to}")


def check_movable(mine: Mapping[Key, Declared]) -> None:
    """:raises ConflictError: something of it stays where it is."""
    for key, one in mine.items():
        stays = isinstance(one.object, Volume) and not moves(one.object)
        if stays or key.kind == "pool":
            raise ConflictError(f"{key.words}: its data is on host {one.host} alone: it does not move")
