"""The sockets through which guests come: exactly those that are wanted, and tried again where one could not be made.

Owns what is reported of those that are not there. Making them is the endpoint's work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from nvmuser.reconcile.engine import Engine
from nvmuser.supervisor.backoff import Backoff
from nvmuser.supervisor.endpoint import EndpointProcess
from nvmuser.supervisor.history import History

_TROUBLE = "door"
_NAMED = 5
"""Controllers that are named at most where many have the same reason."""


class Doors:
    """Of one supervisor."""

    def __init__(self, endpoint: EndpointProcess, engine: Engine, history: History) -> None:
        self._endpoint = endpoint
        self._engine = engine
        self._history = history
        self._closed = asyncio.Event()
        """One at least could not be made."""

    async def open(self) -> None:
        """Have the endpoint listen for every controller, and let those who may connect reach it."""
        failed = await self._endpoint.serve(self._engine.controllers())
        self._history.hold(_TROUBLE, _words(failed))
        if failed:
            self._closed.set()
        else:
            self._closed.clear()
        self._engine.open_sockets()

    async def keep_open(self) -> None:
        """Try again what has failed, for ever: there may be room again."""
        backoff = Backoff()
        while True:
            await self._closed.wait()
            backoff.failed()
            await backoff.wait()
            await self.open()
            if not self._closed.is_set():
                backoff.worked()


def _words(failed: Mapping[str, str]) -> list[str]:
    """One line for each reason."""
    names: dict[str, list[str]] = {}
    for name, why in failed.items():
        names.setdefault(why, []).append(name)
    return [f"no guest can connect to {_listed(found)}, without a socket: {why}" for why, found in names.items()]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"controller{'s' * (len(names) > 1)} {', '.join(names[:_NAMED])}{more}"
