"""Until hosts have carried out a change: those that live are waited for, and those that die meanwhile no longer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

from nvmuser.errors import FleetError
from nvmuser.fleet.etcd.client import Client, Listing
from nvmuser.fleet.etcd.watch import Changes, Lost, Watcher
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.records import Report, decode
from nvmuser.model.keys import Key
from nvmuser.reconcile.calls import Problem
from nvmuser.reconcile.outcome import Outcome

PATIENCE_S = 120.0
_LOOK_S = 2.0
"""After which it is looked whether those still live that are waited for."""


class Waiting:
    """For some hosts, to carry out everything up to a revision.

    :param concerned: objects of which a single problem ends the waiting: the change will be undone.
    """

    def __init__(
        self, client: Client, keys: FleetKeys, hosts: Collection[str], revision: int, concerned: Collection[Key] = ()
    ) -> None:
        self._concerned = frozenset(concerned)
        self._client = client
        self._keys = keys
        self._revision = revision
        self._hosts = set(hosts)
        self._pending = False
        self._problems: dict[Key, Problem] = {}

    async def outcome(self, live: Collection[str]) -> Outcome:
        """Wait. What takes effect only later is pending; what went wrong is among the problems.

        :param live: hosts that live.
        """
        self._leave(self._hosts - set(live))
        tasks = [asyncio.create_task(self._hear()), asyncio.create_task(self._look())]
        try:
            if self._hosts:
                await asyncio.wait(tasks, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for host in self._hosts:
            self._add(host, f"not done after {PATIENCE_S:.0f} s; see `nvmuser fleet show`")
        return Outcome(problems=tuple(self._problems.values()), pending=self._pending)

    def _leave(self, hosts: set[str]) -> None:
        """Those get it when they are back."""
        self._pending |= bool(hosts)
        self._hosts -= hosts

    def _add(self, host: str, text: str) -> None:
        key = Key("host", host)
        self._problems[key] = Problem(key, text)

    async def _hear(self) -> None:
        """What they report."""
        async with contextlib.aclosing(Watcher(self._client, self._keys.reports).events()) as events:
            async for event in events:
                if not isinstance(event, Lost):
                    for host, report in reports(self._keys, event).items():
                        self._take(host, report)
                if not self._hosts:
                    return

    def _take(self, host: str, report: Report) -> None:
        if host not in self._hosts or report.revision < self._revision:
            return
        self._hosts.discard(host)
        self._pending |= report.pending
        for text, what in report.problems.items():
            key = Key.parse(text) if text else Key("host", host)
            self._problems[key] = Problem(key, f"{what} (host {host})")
        if not self._concerned.isdisjoint(self._problems):
            self._hosts = set()

    async def _look(self) -> None:
        """Whether they still live. Where etcd has gone away, what was declared stands, and nobody can be heard."""
        while self._hosts:
            await asyncio.sleep(_LOOK_S)
            try:
                self._leave(self._hosts - await live_hosts(self._client, self._keys))
            except FleetError as error:
                for host in self._hosts:
                    self._add(host, f"it is declared, and not known whether it is done: {error}")
                self._hosts = set()


async def live_hosts(client: Client, keys: FleetKeys) -> set[str]:
    """Names of the hosts that live.

    :raises FleetError: etcd does not answer.
    """
    listing = await client.listing(keys.lives)
    return {keys.split(name)[1] for name in listing.items}


def reports(keys: FleetKeys, event: Listing | Changes) -> dict[str, Report]:
    """What each host says.

    :raises FleetError: it is of a newer version.
    """
    return {
        keys.split(name)[1].partition("/")[0]: Report.from_json(decode(name, item.value))
        for name, item in event.items.items()
        if item
    }
