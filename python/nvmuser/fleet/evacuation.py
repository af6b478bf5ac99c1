"""Everything that can leave a host, elsewhere: a host that is drained gives it up, one that is evicted is shut out.

Of a host that is drained, guests that run go too, with what they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nvmuser.errors import ConflictError, NotFoundError, NvmuserError
from nvmuser.fleet.journey import DONE, Journey
from nvmuser.fleet.move import check_movable, companies, relocate
from nvmuser.fleet.records import Declared
from nvmuser.fleet.session import Session
from nvmuser.fleet.travel import send
from nvmuser.fleet.view import View, counted
from nvmuser.model.keys import Key
from nvmuser.store.events import Actor

_TOGETHER = 8
"""Moves at a time."""

Group = Mapping[Key, Declared]


@dataclass
class Evacuated:
    """What came of it, by controllers; volumes that no controller shows, by themselves."""

    moved: dict[Key, str] = field(default_factory=dict)
    """Where each is now."""
    stayed: dict[Key, str] = field(default_factory=dict)
    """Why not."""


async def evacuate(
    session: Session,
    host: str,
    actor: Actor,
    *,
    force: bool,
    only: Callable[[Group], bool] = lambda group: True,
) -> Evacuated:
    """Move what can move to other hosts that live and are not cordoned, each to where there are fewest controllers.

    :param force: the host is shut out, and not asked.
    :param only: which of what goes together is concerned.
    :raises NotFoundError: there is no such host.
    """
    view = await session.view()
    if host not in view.hosts:
        raise NotFoundError(f"host {host}: no such host; `nvmuser host list` shows those that there are")
    result, counts = Evacuated(), dict(counted(view))
    guests: list[tuple[Group, str]] = []
    slots = asyncio.Semaphore(_TOGETHER)

    async def leave(group: Group, to: str) -> None:
        async with slots:
            try:
                await relocate(session, view, group, to, actor, force=force)
            except NvmuserError as error:
                result.stayed |= dict.fromkeys(_named(group), str(error))
                guests.append((group, to))
            else:
                result.moved |= dict.fromkeys(_named(group), to)

    moves = []
    for group in filter(only, companies(view, host)):
        try:
            check_movable(group)
            to = _destination(view, host, counts)
        except NvmuserError as error:
            result.stayed |= dict.fromkeys(_named(group), str(error))
            continue
        counts[to] += sum(key.kind == "controller" for key in group)
        moves.append(leave(group, to))
    await asyncio.gather(*moves)
    if not force:
        await _with_guests(session, host, actor, result, guests)
    return result


async def _with_guests(
    session: Session, host: str, actor: Actor, result: Evacuated, groups: Sequence[tuple[Group, str]]
) -> None:
    """What could not go alone, with the guests that use it: one after the other, since a guest may have several."""
    for group, to in groups:
        keys = [key for key in _named(group) if key.kind == "controller" and key in result.stayed]
        if not keys:
            continue
        try:
            went = await send(session, Journey(host, to, (keys[0].name,)), actor)
        except NvmuserError as error:
            result.stayed |= dict.fromkeys(keys, str(error))
            continue
        if went.state != DONE:
            # Where nvmuser has started no guest on it, it is as it was said before.
            result.stayed |= dict.fromkeys(keys, went.reason) if went.guest else {}
            continue
        for name in went.controllers:
            key = Key("controller", name)
            result.stayed.pop(key, None)
            result.moved[key] = to


def _destination(view: View, host: str, counts: Mapping[str, int]) -> str:
    """:raises ConflictError: there is none."""
    fitting = [name for name, one in view.hosts.items() if name != host and name in view.live and not one.cordoned]
    if not fitting:
        raise ConflictError(f"there is no other host than {host} that lives and is not cordoned")
    return min(fitting, key=lambda name: (counts.get(name, 0), name))


def _named(group: Group) -> list[Key]:
    return [key for key in group if key.kind == "controller"] or [key for key in group if key.kind == "volume"]


def check_silent(view: View, host: str) -> None:
    """:raises ConflictError: a host lives, and could be asked."""
    if host in view.live:
        raise ConflictError(
            f"host {host} answers: `nvmuser host drain {host}` has it give up what it has; --force shuts it out"
        )


def check_answers(view: View, host: str) -> None:
    """:raises ConflictError: a host does not live, and cannot be asked."""
    if host in view.hosts and host not in view.live:
        raise ConflictError(
            f"host {host} does not answer, so that it cannot give up what it may have open; "
            f"`nvmuser host evict {host}` shuts it out"
        )
