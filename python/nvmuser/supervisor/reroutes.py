"""Looks after what is elsewhere: a remote's path that is down, and whose name leads elsewhere by now, is moved there; a
reservation that a remote has forgotten is taken again, and one that somebody has taken is reported; an image in Ceph
that could not be opened is tried again.

Owns when that is looked at. It changes nothing itself: what is found is carried out as every other act.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from nvmuser.errors import NvmuserError
from nvmuser.reconcile.engine import Engine

_LOOK_EACH_S = 3.0

log = logging.getLogger(__name__)


async def follow(engine: Engine, reconcile: Callable[[], Awaitable[object]]) -> None:
    """For ever. Names are resolved only while a path is down, and clusters asked while an image is not open.

    :param reconcile: one act of the engine.
    """
    while True:
        await asyncio.sleep(_LOOK_EACH_S)
        try:
            if found := await engine.moved_remotes():
                log.info("moved: %s", ", ".join(remote.key.words for remote in found))
            if taken := await engine.changed_hands():
                log.warning("reservations have changed hands: %s", ", ".join(key.words for key in taken))
            if found or taken or engine.unopened_images():
                await reconcile()
        except NvmuserError as error:
            log.warning("remotes could not be looked at: %s", error)
