"""What is on its way from one target to another: on none, until the one has closed it.

Owns the order of a move: the guests are told, the old target closes what goes, which ends its I/O, and only then does
it belong to the new one. A target that does not let go in time is ended: that ends its I/O as surely.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Protocol

from nvmuser.errors import RpcConnectionError, RpcTimeoutError, TargetError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.placement import UNBOUND, on
from nvmuser.reconcile.site import Site
from nvmuser.rpc.client import Client

_DEADLINE = 10.0
"""Seconds in which a target has to let go. Its other guests would lose it; those that wait have hours."""

_SUCCESSOR = "+"
"""After a target's name: the process that takes over from its present one. No name has it."""

log = logging.getLogger(__name__)


def successor_of(target: str) -> str:
    """Under which name the process is known that takes over from a target's present one."""
    return target + _SUCCESSOR


class Guests(Protocol):
    """Who is told what happens to controllers, and can end a target. The supervisor."""

    async def leaving(self, controllers: Collection[str], same: Collection[str]) -> None:
        """Their target is about to let go of them.

        :param same: those of them that will show the same on the next: their guests need not notice.
        """

    def left(self, controllers: Collection[str]) -> None:
        """Nothing of theirs is in flight any more."""

    async def end_one(self, name: str, rpc: Client) -> bool:
        """End the process of a target that does not let go; False: nobody here can.

        :param rpc: its connection.
        """


class Nobody:
    """Where there is no supervisor, no guest is connected."""

    async def leaving(self, controllers: Collection[str], same: Collection[str]) -> None:
        """Nobody is told."""

    def left(self, controllers: Collection[str]) -> None:
        """Nobody is told."""

    async def end_one(self, name: str, rpc: Client) -> bool:
        return False


class Transit:
    """Of one engine.

    :param sites: the targets, by name.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.guests: Guests = Nobody()
        self.deadline = _DEADLINE
        self._sites = sites
        self._keys: frozenset[Key] = frozenset()
        self._succeeded: dict[str, frozenset[Key]] = {}
        """What has gone to the successor of a target's process, by the target's name."""
        self._parts: tuple[Desired, dict[str, Desired]] | None = None

    def scope(self, name: str, desired: Desired) -> Desired:
        """What of everything wanted is on a target now, or on the successor of its process."""
        known = self._parts
        if known is None or known[0] is not desired:
            known = self._parts = (desired, {})
        if name not in known[1]:
            known[1][name] = self._scope(name, desired)
        return known[1][name]

    def _scope(self, name: str, desired: Desired) -> Desired:
        target = name.removesuffix(_SUCCESSOR)
        part = on(desired, target, self._keys)
        gone = self._succeeded.get(target)
        if gone is None:
            return part
        here = (key in gone for key in part.entries) if name != target else (key not in gone for key in part.entries)
        return Desired(
            {
                key: entry
                for (key, entry), is_here in zip(part.entries.items(), here, strict=True)
                if is_here or key.kind in UNBOUND
            }
        )

    def succeed(self, target: str, keys: Collection[Key] | None) -> None:
        """These of a target are its process's successor's; None: there is no successor (any more), or it is all."""
        if keys is None:
            self._succeeded.pop(target, None)
        else:
            self._succeeded[target] = frozenset(keys)
        self._parts = None

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
        self._parts = None

    def give_up(self, moved: Collection[Key]) -> None:
        """They are on a target again."""
        self._keys -= frozenset(moved)
        self._parts = None

    async def carry(self, moved: Mapping[Key, tuple[str, str]], changed: Collection[str] = ()) -> None:
        """Have the old targets let go. It is the new ones' when this returns, or raises.

        :param changed: controllers among them that will not show the same there.
        :raises NvmuserError: an old target has it open still.
        """
        controllers = [key.name for key in moved if key.kind == "controller"]
        try:
            await self.guests.leaving(controllers, [name for name in controllers if name not in changed])
            for name in sorted({from_ for from_, _ in moved.values()} & self._sites.keys()):
                await self._leave(name)
        finally:
            self.give_up(moved)
        self.guests.left(controllers)

    @contextlib.asynccontextmanager
    async def closed(self, controller: Key, target: str) -> AsyncIterator[None]:
        """A controller is on no target, and nothing of it is in flight: its guest waits. Its volumes stay open.

        :raises NvmuserError: its target has it open still.
        """
        self.begin([controller])
        try:
            await self.guests.leaving([controller.name], [controller.name])
            await self._leave(target)
            self.guests.left([controller.name])
            yield
        finally:
            self.give_up([controller])

    async def _leave(self, name: str) -> None:
        site, rpc = self._sites[name], self._sites[name].rpc
        try:
            await site.leave(self.deadline)
        except (TargetError, RpcConnectionError, RpcTimeoutError) as error:
            log.warning("target %s: %s", name, error)
            if rpc is None or not await asyncio.shield(self.guests.end_one(name, rpc)):
                raise
            if site.rpc is rpc:  # else its successor is there already
                site.lost()
