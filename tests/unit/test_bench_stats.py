"""Intervals and the steady-state test, by properties that hold for all data."""

from __future__ import annotations

import math
import os
import subprocess
from subprocess import PIPE

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmuser.bench.measure import cpu, environment, stats

VALUES = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(VALUES)
def test_median_lies_in_its_interval_and_the_interval_in_the_data(values: list[float]) -> None:
    interval = stats.median(values)
    margin = 1 + 1e-9
    assert min(values) <= interval.low * margin
    assert interval.low <= interval.median * margin
    assert interval.median <= interval.high * margin
    assert interval.high <= max(values) * margin


@settings(max_examples=25, deadline=None)
@given(VALUES, st.floats(0.1, 10))
def test_ratio_of_what_differs_by_a_factor_is_the_factor(values: list[float], factor: float) -> None:
    interval = stats.ratio([value * factor for value in values], values)
    assert interval.median == pytest.approx(factor)
    assert interval.low == pytest.approx(factor)
    assert interval.high == pytest.approx(factor)


def test_ratio_divides_out_what_slows_a_whole_round() -> None:
    ours, theirs = [100.0, 40.0, 90.0, 20.0], [50.0, 20.0, 45.0, 10.0]
    assert stats.ratio(ours, theirs).spread == pytest.approx(1)
    assert stats.difference(theirs, ours).spread > 2


def test_same_measurements_give_the_same_interval() -> None:
    assert stats.difference([3, 1, 4], [1, 5]) == stats.difference([3, 1, 4], [1, 5])


@pytest.mark.parametrize(("rounds", "level"), [(3, 0.75), (4, 0.875), (5, 0.9375), *((n, 0.95) for n in range(6, 13))])
def test_intervals_hold_the_true_median_as_often_as_they_say(rounds: int, level: float) -> None:
    assert stats.level(rounds) == level
    generator = np.random.default_rng(rounds)
    drawn = generator.lognormal(0, 0.2, size=(2_000, rounds))  # whose true median is 1
    intervals = [stats.median(list(row)) for row in drawn]
    held = sum(interval.low <= 1 <= interval.high for interval in intervals) / len(intervals)
    noise = 3 * (level * (1 - level) / len(intervals)) ** 0.5
    assert held > level - noise
    if rounds < 6:
        assert held < level + noise


def test_the_interval_of_a_difference_is_a_95_percent_one_from_five_rounds_on() -> None:
    generator = np.random.default_rng(5)
    drawn = generator.lognormal(0, 0.2, size=(300, 2, 5))
    intervals = [stats.difference(list(old), list(new)) for old, new in drawn]
    assert sum(interval.low <= 1 <= interval.high for interval in intervals) / len(intervals) > 0.93


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], []), ([1.0], [0.0]), ([], [])])
def test_ratios_that_do_not_exist(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"ratio|median"):
        stats.ratio(ours, theirs)


def test_one_round_says_nothing_about_spread() -> None:
    assert math.isinf(stats.ratio([2.0], [1.0]).spread)


@given(st.floats(1, 1e6), st.integers(5, 40))
def test_constant_is_steady(value: float, length: int) -> None:
    assert stats.steadiness([value] * length).steady


@pytest.mark.parametrize(
    ("series", "steady"),
    [
        ([100, 101, 99, 100, 102, 98], True),
        ([100, 90, 80, 70, 60, 50], False),  # drifts
        ([100, 100, 130, 100, 100], False),  # one window out of bounds
        ([10, 50, 100, 100, 100, 101, 99, 100, 100, 100, 100], False),  # the climb is inside the windows
        ([10, 100, 100, 100, 100, 100], True),  # and here left of them
        ([100, 100, 100], False),  # too short to tell
        ([0, 0, 0, 0, 0], False),
    ],
)
def test_steadiness(series: list[float], steady: bool) -> None:
    assert stats.steadiness(series).steady is steady


def test_used_interpolates_between_samples() -> None:
    samples = [(0.0, 0.0), (1.0, 0.0), (2.0, 1.0), (3.0, 2.0), (4.0, 2.0)]
    assert cpu.used(samples, 1.0, 3.0) == pytest.approx(1.0)
    assert cpu.used(samples, 0.5, 1.5) == pytest.approx(0.5)
    assert cpu.used(samples, -1.0, 2.0) is None
    assert cpu.used(samples, 2.0, 5.0) is None
    assert cpu.used([], 0.0, 1.0) is None


def test_process_seconds_grow_with_work() -> None:
    before = cpu.process_seconds(os.getpid())
    environment.spin()
    assert cpu.process_seconds(os.getpid()) > before


async def test_sampler_keeps_a_dead_process_share() -> None:
    async with cpu.ProcessSampler({"self": [os.getpid()], "none": [2**22 - 1]}) as sampler:
        pass
    assert sampler.samples["self"][-1][1] > 0
    assert sampler.samples["none"][-1][1] == 0


def test_spin_leaves_the_affinity_as_it_was() -> None:
    allowed = os.sched_getaffinity(0)
    assert 0 <= environment.spin() < 1
    assert os.sched_getaffinity(0) == allowed


def test_spin_leaves_out_what_a_process_of_ours_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        pytest.skip("one CPU")
    listened: list[set[int]] = []
    program = ["bash", "-c", "echo reactor_0 >/proc/$BASHPID/comm; echo; read"]
    with subprocess.Popen(program, stdin=PIPE, stdout=PIPE) as reactor:
        assert reactor.stdout is not None
        reactor.stdout.readline()
        os.sched_setaffinity(reactor.pid, {first})
        monkeypatch.setattr(environment.os, "sched_setaffinity", lambda _pid, cpus: listened.append(cpus))
        environment.spin([reactor.pid])
        reactor.kill()
    assert listened[:-1] == [{cpu} for cpu in others], "the last gives the affinity back"
