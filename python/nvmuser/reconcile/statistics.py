"""What each volume has been asked to do since the target started: operations, bytes, latency.

Owns the way from SPDK's counters to our volumes; it only reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvmuser.model.desired import Desired
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Bdev
from nvmuser.rpc.client import Client


@dataclass(frozen=True)
class Counters:
    """Of one kind of operation."""

    operations: int
    bytes: int
    latency_s: float
    """Of all operations together, from the volume's queue to its answer; limits count."""

    def __sub__(self, before: Counters) -> Counters:
        return Counters(
            self.operations - before.operations, self.bytes - before.bytes, self.latency_s - before.latency_s
        )

    @property
    def mean_us(self) -> float | None:
        """Mean latency in microseconds; None: nothing was done."""
        return self.latency_s / self.operations * 1e6 if self.operations else None

    def to_json(self) -> dict[str, Any]:
        mean = self.mean_us
        return {
            "operations": self.operations,
            "bytes": self.bytes,
            "mean_latency_us": round(mean, 1) if mean is not None else None,
            "latency_s": self.latency_s,
        }


@dataclass(frozen=True)
class Statistics:
    """Of one volume."""

    volume: str
    read: Counters
    write: Counters
    unmap: Counters

    def __sub__(self, before: Statistics) -> Statistics:
        return Statistics(self.volume, self.read - before.read, self.write - before.write, self.unmap - before.unmap)

    def to_json(self) -> dict[str, Any]:
        return {
            "volume": self.volume,
            "read": self.read.to_json(),
            "write": self.write.to_json(),
            "unmap": self.unmap.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Statistics:
        """What `to_json` has made."""

        def counters(one: Mapping[str, Any]) -> Counters:
            return Counters(one["operations"], one["bytes"], one["latency_s"])

        return cls(data["volume"], *(counters(data[kind]) for kind in ("read", "write", "unmap")))

    @classmethod
    def from_spdk(cls, volume: str, data: Mapping[str, Any], ticks_per_s: int) -> Statistics:
        """From one entry of `bdev_get_iostat` (lib/bdev/bdev.c, `spdk_bdev_dump_io_stat_json`)."""

        def counters(operations: str, size: str, latency: str) -> Counters:
            return Counters(data[operations], data[size], data[latency] / ticks_per_s)

        return cls(
            volume,
            counters("num_read_ops", "bytes_read", "read_latency_ticks"),
            counters("num_write_ops", "bytes_written", "write_latency_ticks"),
            counters("num_unmap_ops", "bytes_unmapped", "unmap_latency_ticks"),
        )


@dataclass(frozen=True)
class Reactor:
    """One core of a target: seconds with something to do, and without."""

    core: int
    busy_s: float
    idle_s: float


async def reactors(rpc: Client) -> list[Reactor]:
    """How busy each reactor was since the target started.

    :raises RpcError: SPDK cannot be asked.
    """
    found = await rpc.call("framework_get_reactors")
    rate = found["tick_rate"]
    return [Reactor(one["lcore"], one["busy"] / rate, one["idle"] / rate) for one in found["reactors"]]


async def collect(rpc: Client, desired: Desired) -> dict[str, Statistics]:
    """Of every volume that SPDK has, snapshots and clones too, by name.

    :raises RpcError: SPDK cannot be asked.
    """
    counted = await rpc.call("bdev_get_iostat")
    counters = {bdev["name"]: bdev for bdev in counted["bdevs"]}
    names = {volume.name: backends.bdev_name(volume, desired) for volume in desired.volumes()}
    if any(name not in counters for name in names.values()):
        # Volumes in pools are known to SPDK by another name than ours.
        bdevs = [Bdev.from_spdk(bdev) for bdev in await rpc.call("bdev_get_bdevs")]
        counters |= {alias: counters[bdev.name] for bdev in bdevs if bdev.name in counters for alias in bdev.aliases}
    rate = counted["tick_rate"]
    return {
        volume: Statistics.from_spdk(volume, counters[name], rate) for volume, name in names.items() if name in counters
    }
