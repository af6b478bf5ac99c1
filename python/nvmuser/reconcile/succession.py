"""A target's process and its successor, between which what is on the target goes group by group.

Owns the steps of a rolling restart as far as SPDK is concerned. Processes, and when it is done, are the supervisor's.
"""

from __future__ import annotations

from collections.abc import Iterator

from nvmuser.errors import NvmuserError, TargetError, summary
from nvmuser.model.keys import Key
from nvmuser.model.placement import groups
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.site import Site
from nvmuser.reconcile.transit import successor_of
from nvmuser.rpc.client import Client


class Succession:
    """Of one target. Its caller lets nothing be changed meanwhile.

    :param rpc: the successor's connection.
    """

    def __init__(self, engine: Engine, target: str, rpc: Client) -> None:
        self._engine = engine
        self._target = target
        self._successor = successor_of(target)
        self._gone: frozenset[Key] = frozenset()
        self._ended = False
        engine.transit.succeed(target, ())
        self._site.rpc = rpc

    @property
    def _site(self) -> Site:
        return self._engine.site(self._successor)

    def steps(self) -> Iterator[frozenset[Key]]:
        """What goes together, in turn: controllers with what lies below them, at last all that nobody shows."""
        rest: set[Key] = set()
        for group in groups(self._engine.site(self._target).wanted):
            if group.controllers:
                yield group.keys
            else:
                rest |= group.keys
        if rest:
            yield frozenset(rest)

    async def step(self, keys: frozenset[Key]) -> None:
        """Have these served by the successor. Where it cannot, they are served as before.

        :raises NvmuserError: it cannot; the message has the reason.
        """
        try:
            await self._go(keys, self._target, self._successor, self._gone | keys)
        except NvmuserError:
            await self._go(keys, self._successor, self._target, self._gone - keys)
            raise

    async def _go(self, keys: frozenset[Key], from_: str, to: str, gone: frozenset[Key]) -> None:
        transit = self._engine.transit
        if self._ended:
            raise TargetError("one of both processes has ended")
        transit.begin(keys)
        transit.succeed(self._target, gone)
        self._gone = gone
        await transit.carry(dict.fromkeys(keys, (from_, to)))
        outcome = await self._engine.reconcile([to], keys)
        if wrong := [problem for problem in outcome.problems if problem.object in keys]:
            raise TargetError(summary(wrong))
        if outcome.pending:
            raise TargetError("the process has ended")

    @property
    def controllers(self) -> list[str]:
        """Names of those that the successor serves."""
        return self._engine.controllers(self._successor)

    def end(self, rpc: Client | None) -> None:
        """There is one process again.

        :param rpc: the one that is left, with all of it; None: there is none at this moment.
        """
        self._ended = True
        self._engine.transit.succeed(self._target, None)
        self._engine.drop_site(self._successor)
        self._engine.site(self._target).rpc = rpc
