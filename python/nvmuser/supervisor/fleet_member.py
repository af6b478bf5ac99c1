"""This host's part in a fleet: an agent that follows it, in the supervisor's process.

Owns that agent's life. Whatever becomes of it, the supervisor and its guests go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from nvmuser.errors import NvmuserError
from nvmuser.extras import how_to_install
from nvmuser.fleet.progress import Progress
from nvmuser.fleet.settings import FleetSettings
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome
from nvmuser.store.events import Actor
from nvmuser.supervisor.travellers import Travellers

if TYPE_CHECKING:
    from nvmuser.fleet.agent import Agent

_AGAIN_S = 10.0

log = logging.getLogger(__name__)


class FleetMember:
    """Of one supervisor. Does nothing while this host belongs to no fleet.

    :param change: the supervisor's own method, by which every command changes something.
    """

    def __init__(
        self,
        state: StateDir,
        engine: Engine,
        change: Callable[[dict[str, Any], dict[str, str]], Awaitable[dict[str, Any]]],
    ) -> None:
        self._state = state
        self._engine = engine
        self._change = change
        self._again = asyncio.Event()
        self._settings: FleetSettings | None = None
        self._agent: Agent | None = None
        self._failure = ""
        self._travellers = Travellers(state, self._see_off)

    async def run(self) -> None:
        """For ever."""
        while True:
            self._again.clear()
            following = asyncio.create_task(self._follow())
            again = asyncio.create_task(self._again.wait())
            try:
                await asyncio.wait([following, again], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (following, again):
                    task.cancel()
                await asyncio.gather(following, again, return_exceptions=True)
            if self._settings is None and not self._failure:
                await self._again.wait()
            elif not self._again.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._again.wait(), _AGAIN_S)

    def look_again(self) -> None:
        """It has joined a fleet, or left it."""
        self._again.set()

    def _see_off(self) -> None:
        if self._agent:
            self._agent.see_off()

    async def _follow(self) -> None:
        self._agent, self._failure = None, ""
        self._engine.peers.opening = None
        try:
            self._settings = FleetSettings.load(self._state)
            if self._settings is None:
                return
            from nvmuser.fleet.agent import Agent  # etcd's protocol is an extra
            from nvmuser.fleet.storage_fences import fences_of

            fences = fences_of(self._state, self._settings.host, self._engine.desired, self._engine.peers)
            self._agent = Agent(self._settings, self, fences, self._travellers.start)
            self._engine.peers.opening = self._agent.connecting
            await self._agent.run()
        except* NvmuserError as errors:
            self._failure = str(errors.exceptions[0])
        except* ModuleNotFoundError as errors:
            self._failure = f"{errors.exceptions[0]}: {how_to_install('fleet')}"
        except* Exception as errors:
            self._failure = f"the fleet is not followed, by a defect: {errors.exceptions[0]!r}"
            log.exception("fleet")

    @property
    def troubles(self) -> tuple[str, ...]:
        """Why the fleet is not followed, in words."""
        text = self._failure or (self._agent.trouble if self._agent else "")
        name = f"fleet {self._settings.fleet}" if self._settings else "fleet"
        return (f"{name}: {text}",) if text else ()

    @property
    def facts(self) -> dict[str, Any] | None:
        """For `status`, as JSON; None where this host belongs to no fleet."""
        if self._settings is None:
            return None
        followed, reported = self._agent.revisions if self._agent else (0, 0)
        return {
            "name": self._settings.fleet,
            "host": self._settings.host,
            "followed": not self.troubles,
            "revision": followed,
            "reported": reported,
        }

    # -- what the agent asks of this host --------------------------------------------------------------------

    def desired(self) -> Desired:
        """What is wanted here."""
        return self._engine.desired()

    async def change(self, change: Change) -> Outcome:
        """Carry it out.

        :raises NvmuserError: nothing has changed.
        """
        fleet = self._settings.fleet if self._settings else ""
        return Outcome.from_json(await self._change(change.to_json(), Actor(f"fleet {fleet}", "etcd").to_json()))

    def problems(self) -> Mapping[Key, str]:
        """What is wrong with objects, as far as is known."""
        return {key: problem.message for key, problem in self._engine.problems.items()}

    def progress(self) -> Progress:
        """Up to where this host has carried out what the fleet wants."""
        return Progress.load(self._state)

    def keep(self, progress: Progress) -> None:
        """Record that.

        :raises NvmuserError: it cannot be written.
        """
        progress.save(self._state)
