"""The supervisor's answers to an endpoint whose guest migrates (`nvmf_vfio.keeper.questions`).

Owns the deadline of each, and that one controller's volumes are not given away and taken at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from nvmuser.errors import ConflictError, NvmuserError, RpcError, TargetError
from nvmuser.paths import StateDir
from nvmuser.reconcile import handover
from nvmuser.reconcile.engine import Engine

log = logging.getLogger(__name__)

_DEADLINE = 7.0
"""Seconds in which volumes are closed, or the guest stays: less than the endpoint waits."""
_INTERVAL = 0.02
_TOGETHER = 0.003
"""Seconds. QEMU has a guest's controllers run one after the other, within a millisecond."""
_LOOK_AFTER = 1.0
"""Seconds. A guest may have several controllers, and its driver work to catch up with."""


class Handover:
    """Of one supervisor.

    :param changing: held during each act of the engine.
    """

    def __init__(self, state: StateDir, engine: Engine, changing: asyncio.Lock) -> None:
        self._state = state
        self._engine = engine
        self._changing = changing
        self._arriving = set[str]()
        self._opening: asyncio.Task[dict[str, NvmuserError]] | None = None
        self._looking: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End what is done later. Idempotent."""
        for task in (self._looking, self._opening):
            if task:
                task.cancel()

    async def answer(self, name: str, question: str) -> dict[str, Any]:
        """`identity` of the controller, and `error`, which is empty when it is so, or was done."""
        try:
            match question:
                case "expect":
                    self._expect(name)
                case "yield":
                    await self._yield(name)
                case "take":
                    await self.take_back(name)
                case _:
                    raise TargetError(f"this supervisor does not know {question!r}")
            desired = self._engine.desired()
            return {"error": "", "identity": handover.identity(desired, desired.controller(name))}
        except (NvmuserError, OSError) as error:
            log.warning("controller %s, %s: %s", name, question, error)
            return {"error": str(error), "identity": {}}

    def _expect(self, name: str) -> None:
        if not self._engine.desired().controller(name).away:
            raise ConflictError(
                f"controller {name}: no guest is expected: `nvmuser controller prepare-incoming` comes before its QEMU"
            )

    async def _yield(self, name: str) -> None:
        """Close its volumes for certain. A target that dies meanwhile closes them too, once it has ended."""
        try:
            async with asyncio.timeout(_DEADLINE):
                while True:
                    try:
                        async with self._changing:
                            await handover.give_away(self._state, self._engine, name)
                        log.info("controller %s: volumes closed", name)
                        return
                    except (RpcError, TargetError) as error:
                        log.info("controller %s: not closed yet: %s", name, error)
                    await asyncio.sleep(_INTERVAL)
        except TimeoutError:
            raise TargetError(f"controller {name}: its volumes are not closed after {_DEADLINE:.0f} s") from None

    async def take_back(self, name: str) -> None:
        """Open the volumes of a controller whose guest does not go on elsewhere.

        :raises NvmuserError: they cannot be opened now.
        """
        self._arriving.add(name)
        if self._opening is None:
            self._opening = asyncio.create_task(self._take_together())
        errors = await asyncio.shield(self._opening)
        if name in errors:
            raise errors[name]

    async def _take_together(self) -> dict[str, NvmuserError]:
        """Open the volumes of all controllers that arrive at this moment, as those of one guest do."""
        await asyncio.sleep(_TOGETHER)
        async with self._changing:
            names, self._arriving, self._opening = self._arriving, set(), None
            errors = await handover.take(self._state, self._engine, sorted(names))
        for name in sorted(names - errors.keys()):
            log.info("controller %s: volumes open", name)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return errors

    async def _look(self) -> None:
        """Look at everything, when those who wait for their volumes have them."""
        await asyncio.sleep(_LOOK_AFTER)
        async with self._changing:
            try:
                await self._engine.reconcile()
            except NvmuserError as error:
                log.info("not looked at: %s", error)
