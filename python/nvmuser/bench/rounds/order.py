"""In which order things are measured in a round, so that over the rounds none is favoured by its place.

What comes before a run changes it: caches, clocks, what the host still has to do. With an order that only turns, one
would nearly always follow the same other one. These are E. J. Williams' designs (1949): each has each place equally
often, and follows each other one equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

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
