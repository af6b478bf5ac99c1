"""Alternating rounds: over them, nothing is favoured by its place or by its neighbour."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise, permutations

import pytest

from nvmuser.bench.measure.progress import Silent
from nvmuser.bench.rounds.alternate import alternate, balanced, rounds
from nvmuser.errors import GuestError


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 16, 17])
def test_each_has_each_place_and_follows_each_other_equally_often(count: int) -> None:
    orders = [balanced(range(count), number) for number in range(count if count % 2 == 0 else 2 * count)]
    times = len(orders) // count
    assert all(sorted(order) == list(range(count)) for order in orders)
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {times}
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert follows == dict.fromkeys(permutations(range(count), 2), times)


@pytest.mark.parametrize("count", [4, 7, 16])
def test_few_rounds_never_repeat_a_neighbour_much(count: int) -> None:
    follows = Counter(pair for number in range(min(count, 5)) for pair in pairwise(balanced(range(count), number)))
    assert max(follows.values()) <= 1 + count % 2


class Steps(Silent):
    """Progress that keeps its steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)


async def test_each_thing_has_one_value_a_round_and_each_step_is_reported() -> None:
    measured: list[str] = []

    def thing(name: str) -> Callable[[int], Awaitable[str]]:
        async def measure(number: int) -> str:
            measured.append(name)
            return f"{name}{number}"

        return measure

    progress = Steps()
    values = await alternate({"a": thing("a"), "b": thing("b")}, 3, progress, what="busy, ")
    assert values == {"a": ["a0", "a1", "a2"], "b": ["b0", "b1", "b2"]}
    assert measured == ["a", "b", "b", "a", "a", "b"]
    assert progress.steps[0] == "busy, round 1 of 3: a"
    assert len(progress.steps) == 6


async def test_an_error_ends_the_rounds() -> None:
    async def broken(_round: int) -> float:
        raise GuestError("it went away")

    with pytest.raises(GuestError):
        await alternate({"a": broken}, 3)


def test_no_round_begins_that_would_end_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=4.0)  # each round takes 4 s
    monkeypatch.setattr("nvmuser.bench.rounds.alternate.time.monotonic", lambda: next(clock))
    # The first is from 0 to 4, the second from 8 to 12; the third, from 16 to 20, could be followed by one until 24.
    assert [number for number, _order in rounds("ab", 9, deadline=23.0)] == [0, 1, 2]


def test_the_first_round_always_begins() -> None:
    assert [number for number, _order in rounds("ab", 9, deadline=0.0)] == [0]
