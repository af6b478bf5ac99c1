"""A guest moves from one host of a fleet to another: the steps, as etcd records them.

Each side writes what it has done, and expects what it has read, so that no two steps are taken from one. What a step
needs of QEMU is `nvmuser.guest.departure`'s and `arrival`'s; when the volumes change hands, the guest's own migration
decides.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nvmuser.errors import ConflictError, FleetError, NotFoundError, TargetError, UsageError
from nvmuser.fleet.etcd.client import Put, Transaction
from nvmuser.fleet.etcd.watch import Lost, Watcher
from nvmuser.fleet.journey import ARRIVED, ENDED, LEFT, LOST, REFUSED, Journey
from nvmuser.fleet.proposal import Proposal
from nvmuser.fleet.records import decode, encode
from nvmuser.fleet.session import Session
from nvmuser.fleet.view import View
from nvmuser.fleet.waiting import live_hosts
from nvmuser.store.events import Actor

_LOOK_S = 2.0
"""After which it is looked whether both hosts still live."""


@dataclass(frozen=True)
class Written:
    """A journey, and the revision in which it was written."""

    journey: Journey
    revision: int


class Log:
    """The record of one journey.

    :param name: of the controller under which it is kept.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self.key = session.keys.journey(name)

    async def read(self) -> Written | None:
        """:raises FleetError: etcd does not answer."""
        if item := await self._session.client.get(self.key):
            return Written(Journey.from_json(decode(item.key, item.value)), item.revision)
        return None

    async def write(
        self,
        before: Written,
        after: Journey,
        more: Mapping[str, Put | None] | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        """Take a step.

        :raises ConflictError: somebody else has taken one meanwhile, or something is otherwise than expected.
        :raises FleetError: etcd does not answer. May be called again then.
        """
        writes = {self.key: Put(encode(self.key, after.to_json())), **(more or {})}
        expected = {self.key: before.revision, **(expect or {})}
        if await self._session.client.write_if(Transaction(expected, (), writes)):
            return
        now = await self.read()
        if now is None or now.journey != after:  # else it was written, and the answer was lost
            raise ConflictError(f"guest {after.guest}: somebody else has just decided about its move")

    async def until(self, wanted: Callable[[Journey], bool]) -> Written:
        """Wait.

        :raises NotFoundError: there is no such journey any more. :raises FleetError: it is of a newer version.
        """
        async with contextlib.aclosing(
            Watcher(self._session.client, (_raw(self.key), _raw(self.key) + b"\0")).events()
        ) as all_:
            async for event in all_:
                if isinstance(event, Lost):
                    continue
                if (item := event.items.get(self.key)) is None:
                    raise NotFoundError("the guest's move was given up")
                if wanted(found := Journey.from_json(decode(item.key, item.value))):
                    return Written(found, item.revision)
        raise AssertionError("a watch does not end")

    async def forget(self, ended: Written) -> None:
        """Nobody needs to read it any more. Where etcd does not answer, the next one overwrites it."""
        with contextlib.suppress(FleetError):
            await self._session.client.write_if(Transaction({self.key: ended.revision}, (), {self.key: None}))


def _raw(key: str) -> bytes:
    return key.encode()


async def begin(session: Session, journey: Journey, actor: Actor) -> Log:
    """Have a guest move.

    :raises NotFoundError: there is no such host. :raises ConflictError: it cannot move now.
    """
    [name] = journey.controllers
    view, log = await session.view(), Log(session, name)
    check(view, journey)
    present = view.journeys.get(name)
    if present and present.state not in ENDED and not (present.state == REFUSED and present.to not in view.live):
        raise ConflictError(f"controller {name}: its guest is on its way to host {present.to}")
    note = {"action": "migrate", "kind": "controller", "name": name, "before": journey.source, "after": journey.to}
    write = {log.key: Put(encode(log.key, journey.to_json()))}
    await session.writer(actor).write(Proposal(), write, {log.key: view.revisions.get(log.key, 0)}, note)
    return log


def check(view: View, journey: Journey) -> None:
    """:raises NotFoundError: there is no such host. :raises ConflictError: one does not live, or takes nothing."""
    for host in (journey.source, journey.to):
        if host not in view.hosts:
            raise NotFoundError(f"host {host}: no such host; `nvmuser host list` shows those that there are")
        if host not in view.live:
            raise ConflictError(f"host {host} does not answer")
    if view.hosts[journey.to].cordoned:
        raise ConflictError(f"host {journey.to}: is cordoned; `nvmuser host uncordon {journey.to}`, or choose another")
    if journey.source == journey.to:
        raise UsageError(f"host {journey.to}: the guest is there already")


async def send(
    session: Session, journey: Journey, actor: Actor, on_step: Callable[[Journey], None] = lambda journey: None
) -> Journey:
    """Have a guest move, and wait until it has, or does not. Returns how it ended: `done`, or why not.

    :param on_step: is called with what becomes of it.
    :raises NotFoundError: as of `begin`. :raises ConflictError: as of `begin`.
    :raises TargetError: the host where it was does not answer any more.
    """
    log = await begin(session, journey, actor)

    def has_ended(now: Journey) -> bool:
        on_step(now)
        return now.state in ENDED

    while True:
        try:
            async with asyncio.timeout(_LOOK_S):
                ended = await log.until(has_ended)
        except TimeoutError:
            if found := await _unheard(session, log, journey):
                return found
        else:
            await log.forget(ended)
            return ended.journey


async def _unheard(session: Session, log: Log, journey: Journey) -> Journey | None:
    """What has become of it, where one of both hosts will not say so.

    :raises TargetError: nobody knows.
    """
    try:
        live, now = await live_hosts(session.client, session.keys), await log.read()
    except FleetError:
        return None
    if now and now.journey.state == REFUSED and journey.to not in live:
        return now.journey
    if journey.source not in live and not (now and now.journey.state in (LEFT, LOST, ARRIVED, *ENDED)):
        raise TargetError(f"host {journey.source}, where the guest was, does not answer any more")
    return None
