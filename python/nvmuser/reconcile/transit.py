"""What is on its way from one target to another: on none, until the one has closed it.

Owns the order of a move: the guests are told, the old target closes what goes, which ends its I/O, and only then does
it belong to the new one. A target that does not let go in time is ended: that ends its I/O as surely.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Protocol

from nvmuser.errors import RpcConnectionError, RpcTimeoutError, TargetError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.placement import on
from nvmuser.reconcile.site import Site

_DEADLINE = 10.0
"""Seconds in which a target has to let go. Its other guests would lose it; those that wait have hours."""

log = logging.getLogger(__name__)


class Guests(Protocol):
    """Who is told what happens to controllers, and can end a target. The supervisor."""

    def leaving(self, controllers: Collection[str]) -> None:
        """Their target is about to let go of them."""

    def left(self, controllers: Collection[str]) -> None:
        """Nothing of theirs is in flight any more."""

    async def end_one(self, name: str) -> bool:
        """End a target that does not let go; False: nobody here can."""


class Nobody:
    """Where there is no supervisor, no guest is connected."""

    def leaving(self, controllers: Collection[str]) -> None:
        """Nobody is told."""

    def left(self, controllers: Collection[str]) -> None:
        """Nobody is told."""

    async def end_one(self, name: str) -> bool:
        return False


class Transit:
    """Of one engine.

    :param sites: the targets, by name.
    """

    def __init__(self, sites: Mapping[str, Site], deadline: float = _DEADLINE) -> None:
        self.guests: Guests = Nobody()
        self._sites = sites
        self._deadline = deadline
        self._keys: frozenset[Key] = frozenset()
        self._parts: tuple[Desired, frozenset[Key], dict[str, Desired]] | None = None

    def scope(self, name: str, desired: Desired) -> Desired:
        """What of everything wanted is on a target now."""
        known = self._parts
        if known is None or known[0] is not desired or known[1] is not self._keys:
            known = self._parts = (desired, self._keys, {})
        if name not in known[2]:
            known[2][name] = on(desired, name, known[1])
        return known[2][name]

    def check(self, moved: Mapping[Key, tuple[str, str]]) -> None:
        """Check that there is a target to go to, where there is one to leave.

        :raises TargetError: there is not.
        """
        for key, (from_, to) in moved.items():
            if self._serves(from_) and not self._serves(to):
                raise TargetError(f"{key.words}: target {to} does not serve at this moment; try again when it does")

    def _serves(self, name: str) -> bool:
        return name in self._sites and self._sites[name].rpc is not None

    def begin(self, moved: Collection[Key]) -> None:
        """These are on no target from now on: to be called before anybody can see that they are on another."""
        self._keys |= frozenset(moved)

    def give_up(self, moved: Collection[Key]) -> None:
        """They have not begun to move after all."""
        self._keys -= frozenset(moved)

    async def carry(self, moved: Mapping[Key, tuple[str, str]]) -> None:
        """Have the old targets let go. It is the new ones' when this returns, or raises.

        :raises NvmuserError: an old target has it open still.
        """
        controllers = [key.name for key in moved if key.kind == "controller"]
        self.guests.leaving(controllers)
        try:
            for name in sorted({from_ for from_, _ in moved.values()} & self._sites.keys()):
                await self._leave(name)
        except BaseException:
            self._keys -= moved.keys()
            raise
        self._keys -= moved.keys()
        self.guests.left(controllers)

    async def _leave(self, name: str) -> None:
        site, rpc = self._sites[name], self._sites[name].rpc
        try:
            await site.leave(self._deadline)
        except (TargetError, RpcConnectionError, RpcTimeoutError) as error:
            log.warning("target %s: %s", name, error)
            if not await asyncio.shield(self.guests.end_one(name)):
                raise
            if site.rpc is rpc:  # else its successor is there already
                site.lost()
