"""Controllers that go elsewhere when their host has died, without a person's word, where they were declared so.

One host decides, which the others know by a key with its lease; when it dies itself, another one takes its place. A
host counts as dead when its lease has ended and it has not come back within a time of grace. Whether it is dead indeed
does not matter: it is shut out by the storage before anything is opened elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time

from nvmuser.errors import FleetError, NvmuserError
from nvmuser.fleet.etcd.client import Listing, Put, Transaction
from nvmuser.fleet.etcd.watch import Lost, Watcher
from nvmuser.fleet.evacuation import Group, evacuate
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.session import Session, session
from nvmuser.fleet.settings import FleetSettings
from nvmuser.store.events import Actor

GRACE_S = 7.0
"""After the end of a host's lease: a supervisor that is started again, or an upgrade, takes less."""
AGAIN_S = 30.0
"""After which what could not be moved is tried again."""
_LOOK_S = 1.0
_JITTER_S = 0.5
_ACTOR = Actor("failover", "etcd")

log = logging.getLogger(__name__)


class Failover:
    """Of one host's agent, which says when it lives, and whether there is an arbiter."""

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._keys = FleetKeys(settings.fleet)
        self._lease = 0
        self._has_arbiter = True
        self._chance = asyncio.Event()
        self._due: dict[str, float] = {}
        """Hosts that are gone → when something is done about it, by the monotonic clock."""

    def alive(self, lease: int) -> None:
        """This host has a new lease; what hung on another one has ended with it."""
        self._lease = lease
        self._look()

    def arbiter(self, present: bool) -> None:
        """Whether somebody is the arbiter."""
        self._has_arbiter = present
        self._look()

    def _look(self) -> None:
        if self._lease and not self._has_arbiter:
            self._chance.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._chance.wait()
            self._chance.clear()
            await asyncio.sleep(random.uniform(0, _JITTER_S))  # not all of a thousand at once
            try:
                async with session(self._settings) as one:
                    key, mine = self._keys.arbiter, Put(self._settings.host.encode(), self._lease)
                    alive = (self._keys.live(self._settings.host),)
                    if not self._has_arbiter and await one.client.write_if(Transaction({key: 0}, alive, {key: mine})):
                        await self._decide(one)
            except FleetError as error:
                log.info("fleet: %s", error)
                await asyncio.sleep(_LOOK_S)
                self._look()

    async def _decide(self, one: Session) -> None:
        """Until this host is the arbiter no longer.

        :raises FleetError: etcd does not answer.
        """
        mine = now = await one.client.get(self._keys.arbiter)
        self._due = {}
        following = asyncio.create_task(self._follow(one))
        try:
            while mine and now and now.revision == mine.revision and not following.done():
                for host in [host for host, due in self._due.items() if time.monotonic() >= due]:
                    await self._fail_over(one, host)
                await asyncio.sleep(_LOOK_S)
                with contextlib.suppress(FleetError):
                    now = await one.client.get(self._keys.arbiter)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _follow(self, one: Session) -> None:
        """Hosts that die, and come back."""
        live: set[str] = set()
        async with contextlib.aclosing(Watcher(one.client, self._keys.lives).events()) as events:
            async for event in events:
                if isinstance(event, Lost):
                    self._due = {}  # Nobody knows who lives.
                    continue
                if isinstance(event, Listing):
                    live = set()
                for name, item in event.items.items():
                    (live.add if item else live.discard)(self._keys.split(name)[1])
                known = await one.client.listing(self._keys.hosts)
                hosts = {self._keys.split(name)[1] for name in known.items}
                due = time.monotonic() + GRACE_S
                self._due = {host: self._due.get(host, due) for host in hosts - live}

    async def _fail_over(self, one: Session, host: str) -> None:
        """:raises FleetError: etcd does not answer."""
        view = await one.view()
        self._due[host] = time.monotonic() + AGAIN_S
        if host not in view.hosts or host in view.live or view.hosts[host].cordoned:
            return
        try:
            done = await evacuate(one, host, _ACTOR, force=True, only=_asks_for_it)
        except FleetError:
            raise
        except NvmuserError as error:
            log.warning("fleet: host %s is gone: %s", host, error)
            return
        for key, to in done.moved.items():
            log.warning("fleet: host %s is gone: %s is on host %s", host, key.words, to)
        for key, why in done.stayed.items():
            log.warning("fleet: host %s is gone: %s stays: %s", host, key.words, why)


def _asks_for_it(group: Group) -> bool:
    return any(one.failover == "auto" for one in group.values())
