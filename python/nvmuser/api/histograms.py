"""Histograms of volumes' latencies, which SPDK keeps for bdevs that it is asked to.

Each operation pays for it with one more counter, so that nobody has it who has not asked (`--latencies`). A target that
starts again has forgotten that it was asked: it is asked again when its counters are looked at. SPDK has one bucket for
each power of two of its clock's ticks (include/spdk/histogram_data.h, granularity 0).
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nvmuser.errors import RpcError, RpcServerError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.statistics import Statistics
from nvmuser.rpc.client import Client

_OPTIONS = {"enable": True, "granularity": 0, "min_nsec": 8_000, "max_nsec": 16_000_000_000}
"""From 8 microseconds to 16 seconds, and what is below and above."""
_AT_ONCE = 16
"""Requests in flight: a reactor answers those that wait in one go, and serves no I/O meanwhile."""


@dataclass(frozen=True)
class Latencies:
    """Of one volume, since it is counted.

    :param bounds: seconds.
    :param counts: of operations up to each bound and beyond the one before; the last: of those that took longer.
    :param total: seconds that all took together, as the middle of each bucket has it.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @classmethod
    def from_spdk(cls, data: Mapping[str, Any]) -> Latencies:
        """From `bdev_get_histogram`; only of granularity 0."""
        raw = base64.b64decode(data["histogram"])
        counts = struct.unpack(f"<{len(raw) // 8}Q", raw)
        ends = [2**number / data["tsc_rate"] for number in range(data["min_range"], data["max_range"] + 1)]
        # What is longer than the last range is counted in it.
        middles = [end * 3 / 4 for end in ends]
        return cls(tuple(ends[:-1]), counts, sum(count * middle for count, middle in zip(counts, middles, strict=True)))


class Histograms:
    """Of one host, as they were when they were looked at last."""

    def __init__(self) -> None:
        self.seen: dict[str, Latencies] = {}
        self._done: dict[str, Statistics] = {}
        """What each volume had been asked to do then."""

    async def update(
        self,
        clients: Mapping[str, Client],
        parts: Mapping[str, Desired],
        statistics: Mapping[str, Mapping[str, Statistics]],
    ) -> None:
        """Look at those volumes again that have done something.

        :param clients: to targets, by name. :param parts: what is on each. :param statistics: of each, by volume.
        """
        known = {volume for found in statistics.values() for volume in found}
        self.seen = {name: one for name, one in self.seen.items() if name in known}
        turn = asyncio.Semaphore(_AT_ONCE)
        await asyncio.gather(
            *(
                self._look(clients[target], parts[target], one, turn)
                for target, found in statistics.items()
                for one in self._changed(found.values())
            )
        )

    def _changed(self, found: Iterable[Statistics]) -> list[Statistics]:
        return [one for one in found if self._done.get(one.volume) != one]

    async def _look(self, rpc: Client, part: Desired, one: Statistics, turn: asyncio.Semaphore) -> None:
        volume = part.get(Key("volume", one.volume))
        assert isinstance(volume, Volume)
        name = {"name": backends.bdev_name(volume, part)}
        async with turn:
            try:
                found = await rpc.call("bdev_get_histogram", name)
                if found["granularity"] == 0:
                    self.seen[one.volume] = Latencies.from_spdk(found)
                    self._done[one.volume] = one
            except RpcServerError:  # it is not counted yet
                await self._begin(rpc, name)
            except RpcError:
                return

    @staticmethod
    async def _begin(rpc: Client, name: Mapping[str, str]) -> None:
        try:
            await rpc.call("bdev_enable_histogram", {**name, **_OPTIONS})
        except RpcError:
            return
