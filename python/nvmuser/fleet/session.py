"""What a command does in a fleet: it reads what there is, writes a change, and waits until the hosts have carried it
out, as it would on one host.

Owns the way of one command. What is written is `proposal`'s and `writer`'s, and hosts carry it out by `agent`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nvmuser.errors import FleetError, StaleError, TargetError, summary
from nvmuser.fleet.etcd.client import Client
from nvmuser.fleet.etcd.connection import Connection
from nvmuser.fleet.etcd.tls import Tls
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.proposal import Proposal, propose
from nvmuser.fleet.quotas import charged
from nvmuser.fleet.records import Declared, Report
from nvmuser.fleet.settings import FleetSettings
from nvmuser.fleet.view import View
from nvmuser.fleet.waiting import Waiting, reports
from nvmuser.fleet.writer import Author, Writer
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.where import Where
from nvmuser.reconcile.outcome import Outcome
from nvmuser.store.events import Actor


@contextlib.asynccontextmanager
async def opened(settings: FleetSettings) -> AsyncIterator[Client]:
    """A client of the fleet's etcd.

    :raises SetupError: a certificate cannot be used.
    """
    async with Connection(settings.endpoints, tls_of(settings)) as connection:
        yield Client(connection)


def tls_of(settings: FleetSettings) -> Tls | None:
    """The files of its certificates."""
    return Tls(Path(settings.ca), Path(settings.cert), Path(settings.key)) if settings.ca else None


@dataclass(frozen=True)
class Session:
    """A command's, with the fleet that it works on."""

    client: Client
    keys: FleetKeys
    host: str
    """The one that the command runs on; empty: none of the fleet."""

    async def view(self) -> View:
        """What there is.

        :raises FleetError: etcd does not answer, or has no such fleet.
        """
        view = View.of(self.keys, await self.client.listing(self.keys.followed))
        if view.fleet is None:
            raise FleetError(
                f"etcd has no fleet {self.keys.fleet}; `nvmuser fleet init` makes one; where it has lost its data, "
                "`nvmuser fleet import` on each host brings back what that has"
            )
        return view

    async def reports(self) -> dict[str, Report]:
        """What each host last said of itself.

        :raises FleetError: etcd does not answer.
        """
        return reports(self.keys, await self.client.listing(self.keys.reports))

    def writer(self, actor: Actor) -> Writer:
        """Of changes by somebody."""
        return Writer(self.client, self.keys, Author(actor.who, actor.source, self.host))

    async def change(self, change: Change, actor: Actor, wheres: Mapping[Key, Where], default: str) -> Outcome:
        """Change what is wanted, and wait until it is so. What a host refuses is undone everywhere.

        :param wheres, default: as `proposal.propose` has them.
        :raises NvmuserError: nothing has changed, or the message has what did.
        """
        view = await self.view()
        proposal, writer = propose(view, change, wheres, default), self.writer(actor)
        if not proposal.after:
            return Outcome()
        revision = await writer.write(proposal, *charged(view, proposal))
        mentioned = change.keys
        outcome = await self.carried_out(view, proposal.hosts, revision, mentioned)
        mine = [problem for problem in outcome.problems if problem.object in mentioned]
        if mine:
            await self._undo(writer, proposal, revision, view)
            raise TargetError(f"{summary(mine)}; nothing was changed")
        records = [proposal.after[one.key] for one in (*change.create, *change.update)]
        objects = tuple({**one.spec} for one in records if one)
        return replace(outcome, objects=objects)

    async def carried_out(
        self, view: View, hosts: Collection[str], revision: int, concerned: Collection[Key] = ()
    ) -> Outcome:
        """Wait until hosts have carried out everything up to a revision. Those that do not live are not waited for.

        :param concerned: objects of which a single problem ends the waiting.
        """
        return await Waiting(self.client, self.keys, hosts, revision, concerned).outcome(view.live)

    async def _undo(self, writer: Writer, proposal: Proposal, revision: int, view: View) -> None:
        """Write back how it was. Where somebody has changed it meanwhile, that stands."""
        before: dict[Key, Declared | None] = {}
        for key, after in proposal.after.items():
            was = proposal.before.get(key)
            before[key] = was or (replace(after, deleting=True, wipe=True) if after and after.host else None)
        now = await self.view()
        expect = {key: now.revision_of(key) for key in proposal.after}
        if any(now.revision_of(key) > revision for key in proposal.after):
            return
        with contextlib.suppress(StaleError):
            undone = await writer.write(Proposal(dict(proposal.after), before, expect, proposal.hosts))
            await self.carried_out(view, proposal.hosts, undone)


@contextlib.asynccontextmanager
async def session(settings: FleetSettings) -> AsyncIterator[Session]:
    """For a command on this host.

    :raises NvmuserError: a certificate cannot be used.
    """
    async with opened(settings) as client:
        yield Session(client, FleetKeys(settings.fleet), settings.host)


async def submit(
    settings: FleetSettings, change: Change, actor: Actor, wheres: Mapping[Key, Where] | None = None, default: str = ""
) -> Outcome:
    """Change what is wanted of the fleet.

    :param default: the host of what says nothing; empty: any.
    :raises NvmuserError: nothing has changed, or the message has what did.
    """
    async with session(settings) as one:
        return await one.change(change, actor, wheres or {}, default)
