"""Controllers that go from one host to another, with the volumes that they show.

Planned: the host that has them closes them and gives them up, then the other one opens them. Forced: the host that has
them does not answer; it is fenced first, and if that cannot be confirmed, nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nvmuser.errors import ConflictError, NotFoundError, StaleError, TargetError, UsageError
from nvmuser.fleet.etcd.client import Put
from nvmuser.fleet.fences import Fences, moves
from nvmuser.fleet.groups import sets
from nvmuser.fleet.ownership import fenced
from nvmuser.fleet.proposal import Proposal
from nvmuser.fleet.records import SHARED, Declared, encode
from nvmuser.fleet.session import Session
from nvmuser.fleet.view import View, as_desired
from nvmuser.model.change import Change, next_desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.outcome import Outcome
from nvmuser.store.events import Actor


async def move(
    session: Session, controller: str, to: str, actor: Actor, fences: Fences, *, force: bool = False
) -> Outcome:
    """Move a controller, and wait until it is there.

    :param force: the host that has it is fenced, and not asked.
    :raises ConflictError: something of it stays where it is, or cannot be fenced.
    :raises NvmuserError: nothing has moved, or the message has what did.
    """
    view = await session.view()
    before = company(view, Key("controller", controller))
    from_ = before[Key("controller", controller)].host
    if from_ == to:
        return Outcome()
    check(view, before, to)
    if not force and from_ in view.hosts and from_ not in view.live:
        raise ConflictError(
            f"host {from_} does not answer, so that it cannot give up what it may have open; --force fences it first"
        )
    volumes = [one.object for one in before.values() if isinstance(one.object, Volume)]
    owners = await fenced(fences, view, volumes, to) if force else {}
    extra = {session.keys.own(uuid): Put(encode(uuid, owner.to_json())) for uuid, owner in owners.items()}
    expect = {name: view.revisions[name] for name in extra}
    after: dict[Key, Declared | None] = {key: replace(one, host=to, force=force) for key, one in before.items()}
    proposal = Proposal(dict(before), after, {key: view.revision_of(key) for key in before}, frozenset((from_, to)))
    if len(after) + len(extra) > 50:
        raise UsageError(f"controller {controller}: {len(after)} objects would move at once; at most 50")
    revision = await session.writer(actor).write(proposal, extra, expect)
    hosts = (to,) if force else (from_, to)
    outcome = await session.carried_out(view, hosts, revision, after)
    if mine := [problem for problem in outcome.problems if problem.object in after or problem.object.kind == "host"]:
        why = "; ".join(map(str, mine))
        if force:
            raise TargetError(f"{why}; host {from_} is fenced, and {to} has not opened it yet: it goes on trying")
        await _stay(session, actor, proposal, view, hosts)
        raise TargetError(f"{why}; nothing was moved")
    return outcome


async def _stay(session: Session, actor: Actor, proposal: Proposal, view: View, hosts: tuple[str, ...]) -> None:
    now = await session.view()
    expect = {key: now.revision_of(key) for key in proposal.after}
    try:
        undone = await session.writer(actor).write(Proposal(dict(proposal.after), proposal.before, expect))
    except StaleError:
        return
    await session.carried_out(view, hosts, undone)


def company(view: View, controller: Key) -> dict[Key, Declared]:
    """A controller with all that lies below it, but what many hosts reach.

    :raises NotFoundError: there is no such controller.
    """
    if controller not in view.objects or view.objects[controller].deleting:
        raise NotFoundError(f"{controller.words}: no such controller")
    below = {key: one.object.depends_on for key, one in view.objects.items() if not one.deleting}
    [mine] = [keys for keys in sets(below) if controller in keys]
    return {key: view.objects[key] for key in sorted(mine)}


def check(view: View, mine: Mapping[Key, Declared], to: str) -> None:
    """Check whether all of it can be on another host.

    :raises NotFoundError: there is no such host. :raises ConflictError: something of it stays where it is.
    """
    if to not in view.hosts:
        raise NotFoundError(f"host {to}: no such host; `nvmuser host list` shows those that there are")
    if view.hosts[to].cordoned:
        raise ConflictError(f"host {to}: is cordoned; `nvmuser host uncordon {to}`, or choose another")
    for key, one in mine.items():
        stays = isinstance(one.object, Volume) and not moves(one.object)
        if stays or key.kind == "pool":
            raise ConflictError(f"{key.words}: its data is on host {one.host} alone: it does not move")
    there = view.part(to)
    shared = {below for one in mine.values() for below in one.object.depends_on if below.kind in SHARED}
    there |= {key: view.objects[key] for key in shared if key in view.objects}
    next_desired(as_desired(there), Change(create=tuple(one.object for one in mine.values())), lambda volume: volume)
