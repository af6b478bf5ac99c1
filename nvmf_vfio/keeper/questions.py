"""Questions to the supervisor that a controller's migration depends on, each with an answer or a deadline.

Owns the questions that are open. What the supervisor does about one is its own matter (`nvmf_vfio.keeper.channel` has
the list); each may be asked again, and means the same then.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from nvmf_vfio.keeper.channel import Channel

_DEADLINE = 8.0
"""Seconds. The end of I/O may have taken 10 before, a client of ours gives a server up after 20, and QEMU holds its big
lock so long."""


class Unanswered(Exception):
    """There is no supervisor, or it does not answer in time. What it was asked for may have been done."""


class Unasked(Unanswered):
    """There is no supervisor: nothing was done."""


class Questions:
    """The questions of one endpoint.

    :param channel: the channel to the supervisor that there is now.
    """

    def __init__(self, channel: Callable[[], Channel | None]) -> None:
        self._channel = channel
        self._open: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    async def ask(self, controller: str, question: str) -> dict[str, Any]:
        """The answer to a question about a controller: `error`, which is empty or says why not, and `identity`.

        :raises Unanswered: see there.
        """
        channel, number = self._channel(), next(self._numbers)
        if channel is None:
            raise Unasked("there is no supervisor")
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        try:
            channel.send("question", number=number, controller=controller, question=question)
            async with asyncio.timeout(_DEADLINE):
                return await answer
        except TimeoutError:
            raise Unanswered("the supervisor does not answer") from None
        finally:
            del self._open[number]

    def answered(self, message: dict[str, Any]) -> None:
        """Take an answer. One that nobody waits for any more is dropped."""
        answer = self._open.get(message["number"])
        if answer and not answer.done():
            answer.set_result(message)

    def lost(self) -> None:
        """The supervisor is gone: it will not answer what it was asked."""
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(Unanswered("the supervisor is gone"))
