"""The fleet's part in a supervisor: it follows etcd, has this host's part carried out, and reports.

Owns when that is done. How is the engine's, which it asks as every command does. etcd may be away: then nothing is
changed, and everything that there is goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from nvmuser import __version__
from nvmuser.errors import NvmuserError
from nvmuser.fleet import part as parts
from nvmuser.fleet.etcd import lease
from nvmuser.fleet.etcd.client import Client, Listing, Put, Transaction
from nvmuser.fleet.etcd.watch import Changes, Lost, Watcher
from nvmuser.fleet.failover import Failover
from nvmuser.fleet.fences import Fences, moves
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.ownership import Ownership
from nvmuser.fleet.progress import Progress
from nvmuser.fleet.records import SHARED, Declared, Report, encode
from nvmuser.fleet.session import opened
from nvmuser.fleet.settings import FleetSettings
from nvmuser.fleet.taking import Taking
from nvmuser.fleet.view import View
from nvmuser.fleet.writer import LEASE_S
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Volume
from nvmuser.reconcile.outcome import Outcome

_AGAIN_S = 5.0
"""After which what could not be carried out is tried again."""
_LOOK_S = 30.0
"""After which an idle host looks whether something has become wrong, or right."""

log = logging.getLogger(__name__)


class Executor(Protocol):
    """The engine of this host, as the agent needs it."""

    def desired(self) -> Desired:
        """What is wanted here."""

    async def change(self, change: Change) -> Outcome:
        """Carry it out.

        :raises NvmuserError: nothing has changed.
        """

    def problems(self) -> Mapping[Key, str]:
        """What is wrong with objects, as far as is known."""

    def progress(self) -> Progress:
        """Up to where this host has carried out what the fleet wants."""

    def keep(self, progress: Progress) -> None:
        """Record that."""


class Agent:
    """Of one host. `run` is its whole life."""

    def __init__(
        self,
        settings: FleetSettings,
        executor: Executor,
        fences: Fences | None = None,
        travel: Callable[[str, str], None] = lambda controller, side: None,
    ) -> None:
        """
        :param travel: is called with a controller and `source` or `destination`, when its guest's move needs this host.
            Often: it is for who is called to see whether that is under way.
        """
        self._travel = travel
        self._settings, fences = settings, fences or Fences()
        self._keys = FleetKeys(settings.fleet)
        self._ownership = Ownership(self._keys, settings.host, fences)
        self._taking = Taking(self._ownership, fences, executor.desired, self._change)
        self._failover = Failover(settings)
        self._executor = executor
        self._client: Client | None = None
        self._view: View | None = None
        self._dirty = asyncio.Event()
        self._done: dict[Key, int] | None = None
        """The part that was carried out last: key → revision; None: look again in any case."""
        self._problems: dict[Key, str] = {}
        self._pending = False
        self._reported: Report | None = None
        self.trouble = ""
        """Why the fleet cannot be followed, in words."""

    @property
    def revisions(self) -> tuple[int, int]:
        """Of etcd as far as it is followed, and of what this host has reported as carried out; 0: none yet."""
        return self._view.revision if self._view else 0, self._reported.revision if self._reported else 0

    async def run(self) -> None:
        """Until it is cancelled.

        :raises NvmuserError: in a group: a certificate cannot be used, or what is in etcd is damaged or of a
            newer version.
        """
        async with opened(self._settings) as client, opened(self._settings) as pulse:
            await self.serve(client, pulse)

    async def serve(self, client: Client, pulse: Client) -> None:
        """The same, over connections that are there.

        :param pulse: for what must not wait behind anything else: that this host lives.
        """
        self._client = client
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._failover.run())
            tasks.create_task(lease.keep(pulse, LEASE_S, lambda number: self._say_alive(pulse, number)))
            tasks.create_task(self._follow(client))
            tasks.create_task(self._work(client))

    async def _say_alive(self, client: Client, number: int) -> None:
        """Nobody is waited for who has not been let in."""
        key = self._keys.live(self._settings.host)
        transaction = Transaction({}, (self._keys.host(self._settings.host),), {key: Put(b"{}", number)})
        await client.write_if(transaction)
        self._failover.alive(number)

    async def connecting(self, cluster: Cluster, address: str) -> None:
        """Our address in a cluster has come to be known: recorded before an image is opened for the first time. What
        was open before needs no etcd to be opened again.

        :raises NvmuserError: it could not be recorded.
        """
        if self._client and self._view:
            await self._ownership.connecting(self._client, self._view, cluster, address)
        self._done = None
        self._dirty.set()

    async def _follow(self, client: Client) -> None:
        async for event in Watcher(client, self._keys.carried_out).events():
            self._take(event)

    def _take(self, event: Listing | Changes | Lost) -> None:
        if isinstance(event, Lost):
            self.trouble = event.reason
            return
        if isinstance(event, Listing):
            self._view, self._reported, self._done = View.of(self._keys, event, self._settings.host), None, None
        elif self._view and self._view.follow(event):
            # What has come and gone again is reported, too: somebody may wait for it.
            self._done = None
        self.trouble = ""
        self._failover.arbiter(self._view is not None and self._keys.arbiter in self._view.revisions)
        if self._view and self._view.fleet is None:
            self.trouble = (
                f"etcd has no fleet {self._settings.fleet}: it may have lost its data; everything here stays as it is; "
                "`nvmuser fleet import` writes back what this host has"
            )
        self._dirty.set()
        self.see_off()

    def see_off(self) -> None:
        """Have guests that move do what they need of this host."""
        for name, journey in (self._view.journeys if self._view else {}).items():
            if side := journey.side(self._settings.host):
                self._travel(name, side)

    async def _work(self, client: Client) -> None:
        again = 0.0  # when what is unfinished is tried again, whatever else happens until then; 0: nothing is
        while True:
            try:
                async with asyncio.timeout(max(0.0, again - time.monotonic()) if again else _LOOK_S):
                    await self._dirty.wait()
            except TimeoutError:
                if not again:
                    await self._look(client)
                    continue
            if again and time.monotonic() >= again:
                self._done, again = None, 0.0
            self._dirty.clear()
            if self._view is None or self._view.fleet is None or not self._view.settled:
                continue
            try:
                unfinished = await self._carry_out(client, self._view)
            except NvmuserError as error:
                log.info("fleet: %s", error)
                self.trouble, unfinished = str(error), True
            again = (again or time.monotonic() + _AGAIN_S) if unfinished else 0.0

    # -- one round -------------------------------------------------------------------------------------------

    async def _carry_out(self, client: Client, view: View) -> bool:
        """Returns whether something is left to do."""
        revision, cluster = view.revision, view.cluster
        mine = view.part(self._settings.host)
        revisions = {key: view.revision_of(key) for key in mine}
        known = {str(key): number for key, number in revisions.items() if key.kind not in SHARED}
        if conflict := self._executor.progress().conflict(cluster, revision, known):
            self.trouble = conflict
            return True
        local = self._executor.desired()
        if revisions == self._done and self._reported and not self._moved(view, local)[0]:
            return bool(self._problems)
        gone = [key for key in mine if mine[key].deleting]
        moved, kept = self._moved(view, local)
        refused = await self._close(view, mine, local) or await self._taking.take(client, view, mine)
        others = {key: owner.host for key, owner in self._ownership.foreign(view, mine).items() if key not in refused}
        if others:
            log.info("fleet: waiting for %s", ", ".join(f"{key.words} of host {host}" for key, host in others.items()))
        mine = parts.without(mine, {*others, *refused})
        await self._ownership.claim(client, view, mine)
        lost = self._lost(view, local, moved)
        local = self._executor.desired()
        problems, pending = await self._change(list(self._ownership.changes(view, mine, local, moved, lost=lost)))
        problems |= refused
        local = self._executor.desired()
        await self._ownership.opened(client, view, mine, local)
        closing = await self._ownership.give_up(client, view, local.entries)
        if others:
            self._done = None
            return True
        problems |= dict.fromkeys(kept, "belongs to another host by now, and its data is here alone; see docs/fleet.md")
        finished = [key for key in gone if key not in local.entries]
        for key in parts.unknown(view.objects, local):
            problems[key] = "not known to the fleet: `nvmuser fleet import` writes back what this host has"
        done = {key: number for key, number in revisions.items() if key not in finished}
        self._done = done
        progress = Progress(cluster, revision, {key: n for key, n in known.items() if Key.parse(key) in done})
        if progress != self._executor.progress():
            self._executor.keep(progress)
        self._problems, self._pending = problems, pending
        await self._report(client, revision)
        for key in finished:
            await self._forget(client, view, key, revisions[key])
        return bool(problems) or closing or len(finished) < len(gone)

    async def _close(self, view: View, mine: Mapping[Key, Declared], local: Desired) -> dict[Key, str]:
        """Close what is open here from an earlier epoch. Returns what could not be closed."""
        stale = self._ownership.stale(view, mine, local)
        return (await self._change([parts.closing(mine, stale, local)]))[0] if stale else {}

    def _moved(self, view: View, local: Desired) -> tuple[list[Key], list[Key]]:
        """What is another host's by now: what is closed here for that, and what cannot be, since its data is here."""
        host = self._settings.host
        elsewhere = view.elsewhere(host, {one.key for one in local.wanted()} - view.expected(host, local))
        volumes = [local.get(key) for key in elsewhere if key.kind == "volume"]
        stuck = any(isinstance(volume, Volume) and not moves(volume) for volume in volumes)
        return ([], elsewhere) if stuck else (elsewhere, [])

    def _lost(self, view: View, local: Desired, moved: list[Key]) -> bool:
        """Whether what goes was taken from this host by a fence."""
        volumes = [one for key in moved if isinstance(one := local.get(key), Volume)]
        owners = [owner for one in volumes if (owner := view.owners.get(one.uuid))]
        return bool(owners) and all(owner.host != self._settings.host for owner in owners)

    async def _change(self, changes: list[Change]) -> tuple[dict[Key, str], bool]:
        """Problems by their objects, and whether a target is missing."""
        problems, pending = dict[Key, str](), False
        for change in changes:
            try:
                outcome = await self._executor.change(change)
                pending |= outcome.pending
            except NvmuserError as error:
                found = parts.pieces(change, self._executor.desired())
                if len(found) == 1:
                    problems |= dict.fromkeys(change.keys, str(error))
                else:
                    more, also = await self._change(found)
                    problems, pending = problems | more, pending or also
        return problems, pending

    async def _look(self, client: Client) -> None:
        """What has become of this host's objects meanwhile is reported too, when it has changed."""
        if self._reported and not self.trouble:
            try:
                await self._report(client, self._reported.revision)
            except NvmuserError as error:
                log.info("fleet: %s", error)

    async def _report(self, client: Client, revision: int) -> None:
        texts = {str(key): text for key, text in {**self._executor.problems(), **self._problems}.items()}
        report = Report.of(revision, texts, pending=self._pending, version=__version__)
        if report == self._reported:
            return
        key = self._keys.seen(self._settings.host)
        transaction = Transaction(
            {}, (self._keys.host(self._settings.host),), {key: Put(encode(key, report.to_json()))}
        )
        if await client.write_if(transaction):
            self._reported = report

    async def _forget(self, client: Client, view: View, key: Key, revision: int) -> None:
        """It is gone here. Who has changed the record meanwhile is not contradicted."""
        name = self._keys.object(key)
        await client.write_if(Transaction({name: revision, self._keys.change: 0}, (), {name: None}))
