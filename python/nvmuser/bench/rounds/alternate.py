"""Alternating rounds: each thing is measured once a round, in an order that favours none by its place.

Owns the order of every comparison, and the loop of those that measure one value a round; `session` has a loop of its
own, over jobs and guests, inside the same rounds.

What comes before a run changes it: caches, clocks, what the host still has to do. With an order that only turns, a
thing would nearly always follow the same neighbour. The orders are E. J. Williams' designs (1949): each has each place
equally often, and follows each other one equally often.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from nvmuser.bench.measure.progress import Progress, Silent

_T = TypeVar("_T")


def balanced(things: Sequence[_T], number: int) -> list[_T]:
    """The order of one round. Balanced over as many rounds as there are things; over twice as many if those are odd."""
    count = len(things)
    # From both ends in turns, 0 1 n-1 2 n-2 ...: all differences of neighbours, once around, are different.
    zigzag = [(place + 1) // 2 if place % 2 else (count - place // 2) % count for place in range(count)]
    # An odd number needs each order's reverse too. It comes next, so that few rounds have some of both.
    turn, reverse = divmod(number, 2) if count % 2 else (number, 0)
    order = [things[(place + turn) % count] for place in zigzag]
    return order[::-1] if reverse else order


def rounds(things: Sequence[_T], count: int, deadline: float = math.inf) -> Iterator[tuple[int, list[_T]]]:
    """The number of each round, from 0, and its order.

    :param deadline: a `time.monotonic`, in seconds: no round begins that would end later if it took as long as the
        one before. The first always begins.
    """
    for number in range(count):
        begun = time.monotonic()
        yield number, balanced(things, number)
        now = time.monotonic()
        if now + (now - begun) > deadline:
            return


async def alternate(
    measured: Mapping[str, Callable[[int], Awaitable[_T]]],
    count: int,
    progress: Progress | None = None,
    *,
    what: str = "",
) -> dict[str, list[_T]]:
    """Measure each thing once a round. Returns its values in the order of the rounds, by its name.

    :param measured: called with the number of the round, from 0.
    :param what: put before each step of the progress.
    """
    shown = progress or Silent()
    values: dict[str, list[_T]] = {name: [] for name in measured}
    for number, names in rounds(list(measured), count):
        for name in names:
            shown.step(f"{what}round {number + 1} of {count}: {name}")
            values[name].append(await measured[name](number))
    return values
