"""Looks after what is elsewhere: a remote's path that is down, and whose name leads elsewhere by now, is moved there; a
reservation that a remote has forgotten is taken again, and one that somebody has taken is reported; an image in Ceph
that could not be opened is tried again, and a remote that could not be attached.

Owns when that is looked at. It changes nothing itself: what is found is carried out as every other act.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from nvmuser.errors import NvmuserError
from nvmuser.model.keys import Key
from nvmuser.reconcile.engine import Engine

_LOOK_EACH_S = 3.0

_MOST_LOOKS = 20
"""Between two attempts to attach a remote that takes connections, and refuses us."""

log = logging.getLogger(__name__)


class Attempts:
    """When something that keeps failing is tried again: each time later, up to a minute."""

    def __init__(self) -> None:
        self._failing: frozenset[Key] = frozenset()
        self._each = self._left = 0

    def due(self, failing: Collection[Key]) -> bool:
        """Whether it is now. To be asked at each look.

        :param failing: what could be tried.
        """
        if self._failing != (now := frozenset(failing)):
            self._failing, self._each, self._left = now, 1, 1
        if not now:
            return False
        self._left -= 1
        if self._left:
            return False
        self._each = self._left = min(2 * self._each, _MOST_LOOKS)
        return True


async def follow(engine: Engine, reconcile: Callable[[], Awaitable[object]]) -> None:
    """For ever. Names are resolved only while a path is down, and clusters asked while an image is not open.

    :param reconcile: one act of the engine.
    """
    attempts = Attempts()
    while True:
        await asyncio.sleep(_LOOK_EACH_S)
        try:
            if found := await engine.moved_remotes():
                log.info("moved: %s", ", ".join(remote.key.words for remote in found))
            if taken := await engine.changed_hands():
                log.warning("reservations have changed hands: %s", ", ".join(key.words for key in taken))
            absent = attempts.due([remote.key for remote in await engine.absent_remotes()])
            if found or taken or absent or engine.unopened_images():
                await reconcile()
        except NvmuserError as error:
            log.warning("remotes could not be looked at: %s", error)
