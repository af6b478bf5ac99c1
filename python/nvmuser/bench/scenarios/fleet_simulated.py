"""Hosts of a fleet without SPDK: real agents with stores in memory, many in one process.

    python -m nvmuser.bench.scenarios.fleet_simulated URL FLEET FIRST COUNT

Runs hosts FIRST to FIRST + COUNT - 1 until its standard input ends. What such a host carries out costs nothing, so that
what is measured is etcd's part, and the agents'.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence

from nvmuser import collector
from nvmuser.fleet.agent import Agent
from nvmuser.fleet.etcd.client import Client, Put, Transaction
from nvmuser.fleet.etcd.connection import Connection
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.progress import Progress
from nvmuser.fleet.records import Host, encode
from nvmuser.fleet.settings import FleetSettings
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.reconcile.outcome import Outcome

_SHARED = 50
"""Hosts of one connection: those of a real fleet have two each, which this machine's ports and memory would end."""


class InMemory:
    """What a host has and wants, without a machine."""

    def __init__(self) -> None:
        self._desired = Desired()
        self._progress = Progress()

    def desired(self) -> Desired:
        """What is wanted here."""
        return self._desired

    async def change(self, change: Change) -> Outcome:
        """Carry it out, at once.

        :raises NvmuserError: the rules refuse it.
        """
        after = next_desired(self._desired, change, lambda volume: volume)
        self._desired = Desired({key: entry for key, entry in after.entries.items() if not entry.deleting})
        return Outcome()

    def problems(self) -> Mapping[Key, str]:
        """None ever."""
        return {}

    def progress(self) -> Progress:
        """Up to where it is."""
        return self._progress

    def keep(self, progress: Progress) -> None:
        """Remember that."""
        self._progress = progress


def host_name(number: int) -> str:
    """Of a simulated host."""
    return f"sim{number:05}"


async def run(url: str, fleet: str, numbers: Sequence[int]) -> None:
    """Join with these hosts, and follow the fleet until it is cancelled."""
    keys = FleetKeys(fleet)
    async with contextlib.AsyncExitStack() as stack:
        agents = []
        for first in range(0, len(numbers), _SHARED):
            client = Client(await stack.enter_async_context(Connection([url])))
            pulse = Client(await stack.enter_async_context(Connection([url])))
            names = [host_name(number) for number in numbers[first : first + _SHARED]]
            records = {keys.host(name): Put(encode(name, Host(name, name).to_json())) for name in names}
            await client.write_if(Transaction({}, (), records))
            agents += [(Agent(FleetSettings(fleet, name, (url,)), InMemory()), client, pulse) for name in names]
        await asyncio.gather(*(agent.serve(client, pulse) for agent, client, pulse in agents))


async def _until_input_ends(url: str, fleet: str, first: int, count: int) -> None:
    running = asyncio.create_task(run(url, fleet, range(first, first + count)))
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.buffer.read))
    await asyncio.wait([running, ended], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    collector.look_less_often()
    asyncio.run(_until_input_ends(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
