"""How many requests somebody may make: a bucket of tokens each, filled at a constant rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_MOST = 10_000
"""Buckets that are remembered: who comes from more addresses than that has some forgotten."""


@dataclass
class _Bucket:
    level: float
    at: float


class Rate:
    """:param per_s: requests a second in the long run; `burst` as many may come at once."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def wait(self, who: str, cost: float = 1.0) -> float:
        """Take one request's worth. Returns 0, or the seconds after which there is room; then nothing was taken."""
        now = self._clock()
        bucket = self._buckets.get(who)
        if bucket is None:
            if len(self._buckets) >= _MOST:
                self._forget(now)
            bucket = self._buckets[who] = _Bucket(self._burst, now)
        bucket.level = min(self._burst, bucket.level + (now - bucket.at) * self._per_s)
        bucket.at = now
        if bucket.level < cost:
            return (cost - bucket.level) / self._per_s
        bucket.level -= cost
        return 0.0

    def _forget(self, now: float) -> None:
        """Those that are full again, and where none is, the oldest."""
        full = [who for who, one in self._buckets.items() if one.level + (now - one.at) * self._per_s >= self._burst]
        for who in full or list(self._buckets)[: _MOST // 2]:
            del self._buckets[who]
