"""How sure a number is: intervals of medians and of paired ratios, and the test for a steady state.

Pure functions over measured values; nothing here knows of fio, guests or files. The random generator is
seeded, so that the same measurements always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
_RESAMPLES = 10_000
_SEED = 20_610

STEADY_WINDOWS = 5
"""As in SNIA's Performance Test Specification: five windows, whose values stay within 20 percent of their
average and whose best-fit line climbs or falls by at most 10 percent of it.
"""


@dataclass(frozen=True)
class Interval:
    """A median with its confidence interval."""

    median: float
    low: float
    high: float
    samples: int

    @property
    def spread(self) -> float:
        """High over low: how far off the median may be, as a factor. Infinite when nothing can be said."""
        return self.high / self.low if self.low > 0 and self.samples > 1 else math.inf


def _trimmed(samples: int) -> int:
    """How many values each end of the interval may leave out, and still hold the median often enough.

    The k-th lowest lies above the true median exactly when fewer than k of the values lie below it, which
    counts like heads of a fair coin: no assumption about the distribution. A percentile bootstrap of so few
    values has no such promise (95 % by name, it holds the median of 7 values 87 % of the time).
    """
    below, trimmed = 1, 0
    while 2 * (below + math.comb(samples, trimmed + 1)) <= (1 - CONFIDENCE) * 2**samples:
        trimmed += 1
        below += math.comb(samples, trimmed)
    return trimmed


def level(samples: int) -> float:
    """How often, at least, the interval of a median holds the true one: below six values it is their range,
    which is missed when all lie on one side.
    """
    return min(CONFIDENCE, 1 - 2.0 ** (1 - samples))


def median(values: Sequence[float]) -> Interval:
    """The median and its interval between two of the values: the narrowest that holds it 95 % of the time,
    or their range.

    :raises ValueError: no values.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    data = sorted(float(value) for value in values)
    cut = _trimmed(len(data))
    return Interval(float(np.median(data)), data[cut], data[-1 - cut], len(data))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The median of the ratios within each round, with its interval.

    Both sides of a round were measured one right after the other, so that what slowed the whole machine
    divides out.

    :raises ValueError: different numbers of rounds, none, or a peer that did nothing in one.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}: ratios need pairs")
    if any(value <= 0 for value in theirs):
        raise ValueError("a round without any I/O has no ratio")
    return median([a / b for a, b in zip(ours, theirs, strict=True)])


def difference(old: Sequence[float], new: Sequence[float]) -> Interval:
    """new / old of two runs that were not interleaved: both medians resampled independently (bootstrap). It
    holds the true one 95 % of the time from five values a side on.

    :raises ValueError: no values, or an old one that is not positive.
    """
    if not old or not new or any(value <= 0 for value in old):
        raise ValueError("a change needs positive values on both sides")
    generator = np.random.default_rng(_SEED)

    def medians(values: Sequence[float]) -> npt.NDArray[np.float64]:
        data = np.asarray(values, dtype=np.float64)
        picked: npt.NDArray[np.float64] = np.median(
            data[generator.integers(0, len(data), size=(_RESAMPLES, len(data)))], axis=1
        )
        return picked

    ratios = medians(new) / medians(old)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    middle = float(np.median(new) / np.median(old))
    return Interval(middle, float(low), float(high), min(len(old), len(new)))


def slope(numbers: Sequence[float], costs: Sequence[float]) -> float:
    """With which power of a number a cost grows: the slope of the best-fit line between their logarithms.

    1 is in proportion, 2 four times as much for twice as many. A cost that is there with none at all makes it less.

    :raises ValueError: less than two different numbers, or one or a cost that is not above zero.
    """
    if len(set(numbers)) < 2 or min(*numbers, *costs) <= 0:
        raise ValueError("a slope needs two different numbers, and costs above zero")
    return float(np.polyfit(np.log(numbers), np.log(costs), 1)[0])


@dataclass(frozen=True)
class Steadiness:
    """`excursion` and `drift` as shares of the average; `steady` when both are within the bounds."""

    steady: bool
    excursion: float
    drift: float


def steadiness(
    values: Sequence[float],
    *,
    max_excursion: float = 0.2,
    max_drift: float = 0.1,
    windows: int = STEADY_WINDOWS,
) -> Steadiness:
    """The slope test over a series of equally long intervals.

    The series is cut into windows of equal length (what is left over is taken off its start). `excursion` is
    the range of their averages, `drift` what their best-fit line gains from the first to the last. Fewer
    values than windows prove nothing and are not steady.
    """
    length = len(values) // windows
    if length == 0:
        return Steadiness(False, math.inf, math.inf)
    data = np.asarray(values[-length * windows :], dtype=np.float64).reshape(windows, length).mean(axis=1)
    average = float(data.mean())
    if average <= 0:
        return Steadiness(False, math.inf, math.inf)
    slope = float(np.polyfit(np.arange(windows), data, 1)[0])
    excursion = float(data.max() - data.min()) / average
    drift = abs(slope) * (windows - 1) / average
    return Steadiness(excursion <= max_excursion and drift <= max_drift, excursion, drift)
