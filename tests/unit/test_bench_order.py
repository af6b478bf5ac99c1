"""The order of a round: over the rounds, none is favoured by its place or by its neighbour."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

import pytest

from nvmuser.bench.rounds.order import balanced


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 16, 17])
def test_each_has_each_place_and_follows_each_other_equally_often(count: int) -> None:
    rounds = [balanced(range(count), number) for number in range(count if count % 2 == 0 else 2 * count)]
    times = len(rounds) // count
    assert all(sorted(one) == list(range(count)) for one in rounds)
    for place in range(count):
        assert set(Counter(one[place] for one in rounds).values()) == {times}
    follows = Counter(pair for one in rounds for pair in pairwise(one))
    assert follows == dict.fromkeys(permutations(range(count), 2), times)


@pytest.mark.parametrize("count", [4, 7, 16])
def test_few_rounds_never_repeat_a_neighbour_much(count: int) -> None:
    follows = Counter(pair for number in range(min(count, 5)) for pair in pairwise(balanced(range(count), number)))
    assert max(follows.values()) <= 1 + count % 2
