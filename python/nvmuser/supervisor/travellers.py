"""Processes that carry out this host's part when a guest moves to another host of its fleet, or comes from there.

Owns when one is started: also after another one was killed, and by the next supervisor. What they do is
`nvmuser.guest.traveller`'s.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

from nvmuser.paths import StateDir

_AGAIN_S = 2.0
"""After one that has failed."""
_COMMAND = (sys.executable, "-m", "nvmuser.guest.traveller")

log = logging.getLogger(__name__)


class Travellers:
    """Of one supervisor.

    :param ended: is called when one has ended: there may be a next step.
    """

    def __init__(self, state: StateDir, ended: Callable[[], object]) -> None:
        self._state = state
        self._ended = ended
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def start(self, controller: str, side: str) -> None:
        """Have one side's part done, unless that is under way."""
        key = (controller, side)
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._run(controller, side))

    async def _run(self, controller: str, side: str) -> None:
        words = ("--state-dir", str(self._state.root), controller, side)
        nothing = asyncio.subprocess.DEVNULL
        try:
            with (self._state.logs / "moves.log").open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *_COMMAND, *words, stdin=nothing, stdout=output, stderr=output, start_new_session=True
                )
            if await process.wait():
                await asyncio.sleep(_AGAIN_S)
        except OSError as error:
            log.warning("the move of the guest on controller %s: %s", controller, error)
            await asyncio.sleep(_AGAIN_S)
        finally:
            del self._tasks[controller, side]
        self._ended()
