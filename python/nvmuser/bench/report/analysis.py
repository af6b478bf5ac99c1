"""Conclusions from a comparison's runs: ratios with intervals, what is too noisy for a number, what has
changed.

Pure functions over `records.Comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvmuser.bench.measure import stats
from nvmuser.bench.measure.stats import Interval
from nvmuser.bench.report.records import Comparison

MAX_SPREAD = 1.5
"""A ratio whose interval reaches from x to more than one and a half times x means nothing; then there is no
number, but this reason.
"""
MIN_ROUNDS = 3
MIN_DIFF_ROUNDS = 5
"""Of each side: with fewer, the interval of a difference is no 95 % one."""
MIN_CHANGE = 0.03
"""Smaller changes are not worth a word, however sure."""


@dataclass(frozen=True)
class Ratio:
    """Ours over a peer's, or the inverse. `unclear` is the reason for there being no number to believe."""

    interval: Interval
    unclear: str | None
    word: str | None
    """The reason in a word."""

    @property
    def even(self) -> bool:
        """Whether it may as well be 1."""
        return self.interval.low <= 1 <= self.interval.high


def ratios(comparison: Comparison, name: str = "iops", *, inverse: bool = False) -> dict[str, dict[str, Ratio]]:
    """Of one number, by job and peer; a peer that was not measured is left out.

    :param inverse: peer over base, instead of base (ours) over peer.
    """
    table: dict[str, dict[str, Ratio]] = {}
    restless = unsteady(comparison)
    for job in comparison.jobs:
        ours = comparison.values(job, comparison.base, name)
        for peer in comparison.peers:
            theirs = comparison.values(job, peer, name)
            rounds = sorted(ours.keys() & theirs.keys())
            if peer == comparison.base or not rounds:
                continue
            above, below = (theirs, ours) if inverse else (ours, theirs)
            interval = stats.ratio([above[number] for number in rounds], [below[number] for number in rounds])
            reason = _unclear(interval, all(restless[job][side].mostly for side in (comparison.base, peer)))
            table.setdefault(job, {})[peer] = Ratio(interval, *reason)
    return table


def _unclear(interval: Interval, both_unsteady: bool) -> tuple[str | None, str | None]:
    if interval.samples < MIN_ROUNDS:
        return f"{interval.samples} rounds, at least {MIN_ROUNDS} needed", "too few"
    if interval.spread > MAX_SPREAD:
        return f"too noisy: between {interval.low:.2f} and {interval.high:.2f}", "noisy"
    if both_unsteady:
        return "neither side was in a steady state in at least half of its rounds", "unsteady"
    return None, None


@dataclass(frozen=True)
class Unsteady:
    """How many of the runs of one job on one peer were not in a steady state, even when repeated."""

    count: int
    runs: int

    @property
    def mostly(self) -> bool:
        """Whether it is at least half of them."""
        return 0 < self.runs <= 2 * self.count


def unsteady(comparison: Comparison) -> dict[str, dict[str, Unsteady]]:
    """By job and peer."""
    verdicts: dict[str, dict[str, list[bool]]] = {}
    for run in comparison.runs:
        verdicts.setdefault(run.job, {}).setdefault(run.peer, []).append(run.steady)
    return {
        job: {peer: Unsteady(row[peer].count(False), len(row[peer])) for peer in row} for job, row in verdicts.items()
    }


def medians(comparison: Comparison, name: str = "iops") -> dict[str, dict[str, Interval]]:
    """Of one number, by job and peer."""
    return {
        job: {
            peer: stats.median(list(values.values()))
            for peer in comparison.peers
            if (values := comparison.values(job, peer, name))
        }
        for job in comparison.jobs
    }


def level(comparison: Comparison) -> float | None:
    """What its intervals hold at least, by its fewest rounds; None when no peer has enough of them."""
    rounds = [interval.samples for row in medians(comparison).values() for interval in row.values()]
    enough = [count for count in rounds if count >= MIN_ROUNDS]
    return stats.level(min(enough)) if enough else None


def summary(comparison: Comparison) -> dict[str, Any]:
    """The document of `--json`: ratios (null where too noisy), their intervals, medians, noise."""
    table, latency = ratios(comparison), ratios(comparison, "lat_ns.p99")

    def nested(table: dict[str, dict[str, Ratio]], pick: Any) -> dict[str, dict[str, Any]]:
        return {job: {peer: pick(ratio) for peer, ratio in row.items()} for job, row in table.items()}

    def number(ratio: Ratio) -> float | None:
        return None if ratio.unclear else round(ratio.interval.median, 4)

    def bounds(ratio: Ratio) -> list[float]:
        return [round(ratio.interval.low, 4), round(ratio.interval.high, 4)]

    return {
        "schema": "nvmuser.bench.summary/1",
        "ratios": nested(table, number),
        "ratios_ci": nested(table, bounds),
        "latency_ratios": nested(latency, number),
        "latency_ratios_ci": nested(latency, bounds),
        "ci_level": level(comparison),
        "unclear": {
            job: {peer: ratio.unclear for peer, ratio in row.items() if ratio.unclear} for job, row in table.items()
        },
        **_middles(comparison),
        "noise": comparison.noise,
        "unsteady": comparison.unsteady,
        "unsteady_by_peer": {
            job: {peer: found.count for peer, found in row.items()} for job, row in unsteady(comparison).items()
        },
        "skipped": comparison.skipped,
        "complete": comparison.footer is not None,
        **{key: comparison.header[key] for key in ("created", "accelerator", "versions", "environment", "settings")},
    }


def _middles(comparison: Comparison) -> dict[str, Any]:
    """The medians of every metric, by job and peer."""

    def middle(name: str) -> dict[str, dict[str, float]]:
        return {
            job: {peer: interval.median for peer, interval in row.items()}
            for job, row in medians(comparison, name).items()
        }

    return {
        "iops": middle("iops"),
        "bw_bytes": middle("bw_bytes"),
        "lat_ns": {part: middle(f"lat_ns.{part}") for part in ("p50", "p99", "p99_9")},
        "lat_ns_p99": middle("lat_ns.p99"),
        "host_us_per_io": middle("host_us_per_io"),
        "guest_us_per_io": middle("guest_us_per_io"),
    }


METRICS = (
    *("iops", "bw_bytes"),
    *(f"lat_ns.{part}" for part in ("mean", "p50", "p90", "p99", "p99_9")),
    *("host_us_per_io", "guest_us_per_io"),
    "ratio",
)
"""What two comparisons can be compared by. `ratio` is of IOPS, ours over the peer's within each round: what
changed about the machine between the two divides out.
"""
_OURS = ("endpoint", "direct")
"""Peers that our changes affect; all others show changes of the machine."""


def words(metric: str) -> tuple[str, str]:
    """What more of it is called, and less of it: of latency and of CPU per I/O, less is better."""
    if metric.startswith("lat_ns."):
        return "slower", "faster"
    if metric.endswith("_us_per_io"):
        return "costlier", "cheaper"
    return "faster", "slower"


@dataclass(frozen=True)
class Difference:
    """New over old of one job on one peer. `real`: its interval leaves 1 out, it is not tiny, and there are
    enough rounds.
    """

    job: str
    peer: str
    interval: Interval
    real: bool
    metric: str = "iops"

    @property
    def word(self) -> str | None:
        """The verdict; None where there is none."""
        more, less = words(self.metric)
        return (more if self.interval.median > 1 else less) if self.real else None

    @property
    def better(self) -> bool | None:
        """Whether it is an improvement; None where there is no verdict."""
        return self.word in ("faster", "cheaper") if self.real else None


def changes(old: Comparison, new: Comparison, name: str = "iops") -> list[Difference]:
    """What both have measured, the real changes first."""
    found = []
    for job in new.jobs:
        for peer in new.peers:
            before, after = _rounds(old, job, peer, name), _rounds(new, job, peer, name)
            if not before or not after:
                continue
            interval = stats.difference(list(before.values()), list(after.values()))
            enough = interval.samples >= MIN_DIFF_ROUNDS and abs(interval.median - 1) >= MIN_CHANGE
            found.append(Difference(job, peer, interval, enough and not interval.low <= 1 <= interval.high, name))
    return sorted(found, key=lambda change: not change.real)


def _rounds(comparison: Comparison, job: str, peer: str, name: str) -> dict[int, float]:
    """One metric of each round."""
    if name != "ratio":
        return comparison.values(job, peer, name)
    ours, theirs = comparison.values(job, comparison.base), comparison.values(job, peer)
    both = sorted(ours.keys() & theirs.keys()) if peer != comparison.base else []
    return {number: ours[number] / theirs[number] for number in both if theirs[number] > 0}


def machine_changes(changes: Sequence[Difference]) -> dict[str, str]:
    """Jobs in which at least two peers that are not ours really moved the same way, and how: what ours did
    there may be the machine's doing. A ratio has the machine divided out.
    """
    if not any(change.peer in _OURS for change in changes):
        return {}  # of a tuning: all of its variants are ours
    moved = [(change.job, change.word) for change in changes if change.peer not in _OURS and change.metric != "ratio"]
    return {job: word for job, word in moved if word and moved.count((job, word)) >= 2}


def environment_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What else changed between two headers: a reader must know before believing a difference."""
    skip = {"noise", "noise_before", "noise_after", "load_average", "hugepages_free"}
    lines = []
    for part in ("versions", "environment", "settings"):
        for key in sorted(old[part].keys() | new[part].keys()):
            before, after = old[part].get(key), new[part].get(key)
            if key not in skip and before != after:
                lines.append(f"{key}: {before} then, {after} now")
    if old["accelerator"] != new["accelerator"]:
        lines.append(f"accelerator: {old['accelerator']} then, {new['accelerator']} now")
    return lines
