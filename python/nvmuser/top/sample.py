"""What is counted at one moment, on this host or on another over its API, and the rates between two. It only looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvmuser.errors import NvmuserError
from nvmuser.model.placement import on
from nvmuser.paths import StateDir
from nvmuser.reconcile.statistics import Counters, Reactor, Statistics, collect, reactors
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote


@dataclass(frozen=True)
class Sample:
    """Counters at one moment.

    :param at: seconds of the monotonic clock.
    :param facts: as `nvmuser status` has them; empty where no supervisor answers.
    :param reactors: by target.
    """

    at: float
    facts: Mapping[str, Any]
    reactors: Mapping[str, Sequence[Reactor]]
    volumes: Mapping[str, Statistics]


async def take(state: StateDir) -> Sample:
    """:raises NvmuserError: the other host's API refuses, or does not answer."""
    if isinstance(state, Remote):
        return await asyncio.to_thread(_of_remote, state)
    try:
        facts = await control.ask(state, "status", timeout=10.0)
    except NvmuserError:
        facts = {}
    desired = await asyncio.to_thread(control.load, state)
    async with control.spdk(state) as targets:
        counted = await asyncio.gather(*(collect(rpc, on(desired, name)) for name, rpc in targets.items()))
        turning = await asyncio.gather(*(reactors(rpc) for rpc in targets.values()))
        now = time.monotonic()
    volumes = {volume: one for found in counted for volume, one in found.items()}
    return Sample(now, facts, dict(zip(targets, turning, strict=True)), volumes)


def _of_remote(state: Remote) -> Sample:
    facts, turning, counted = state.statistics()
    found: dict[str, list[Reactor]] = {}
    for one in turning:
        found.setdefault(one["target"], []).append(Reactor(one["core"], one["busy_s"], one["idle_s"]))
    return Sample(time.monotonic(), facts, found, counted)


@dataclass(frozen=True)
class Row:
    """One volume. Rates a second; latencies in microseconds, None where nothing was done."""

    volume: str
    read_iops: float
    write_iops: float
    read_bytes: float
    write_bytes: float
    read_us: float | None
    write_us: float | None

    @property
    def iops(self) -> float:
        return self.read_iops + self.write_iops

    @property
    def bytes(self) -> float:
        return self.read_bytes + self.write_bytes

    @property
    def latency(self) -> float:
        """Of the slower kind; -1 where nothing was done."""
        return max(-1.0 if value is None else value for value in (self.read_us, self.write_us))

    def to_json(self) -> dict[str, Any]:
        return {
            "volume": self.volume,
            "read": {"iops": self.read_iops, "bytes_per_s": self.read_bytes, "mean_latency_us": self.read_us},
            "write": {"iops": self.write_iops, "bytes_per_s": self.write_bytes, "mean_latency_us": self.write_us},
        }


@dataclass(frozen=True)
class Busy:
    """How busy one reactor was, in percent."""

    target: str
    core: int
    percent: float

    def to_json(self) -> dict[str, Any]:
        return {"target": self.target, "core": self.core, "busy_percent": self.percent}


@dataclass(frozen=True)
class Rates:
    """What was done between two samples."""

    seconds: float
    volumes: tuple[Row, ...]
    reactors: tuple[Busy, ...]
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "interval_s": round(self.seconds, 3),
            "volumes": [row.to_json() for row in self.volumes],
            "reactors": [
                {"target": one.target, "core": one.core, "busy_percent": one.percent} for one in self.reactors
            ],
            "targets": self.facts.get("targets", {}),
            "guests": self.facts.get("guests", []),
            "errors": self.facts.get("errors", []),
        }


SORTS = ("iops", "bandwidth", "latency", "name")


def rates(before: Sample, after: Sample, sort: str = "iops") -> Rates:
    """What was done between two samples. Of what was made, or started again, in between, there is none yet.

    :param sort: one of `SORTS`.
    """
    seconds = max(after.at - before.at, 1e-6)
    rows = [
        _row(after.volumes[name] - before.volumes[name], seconds)
        for name in after.volumes.keys() & before.volumes.keys()
        if after.volumes[name].read.operations >= before.volumes[name].read.operations
    ]
    rows.sort(key=lambda row: row.volume)
    keys = {"iops": lambda row: -row.iops, "bandwidth": lambda row: -row.bytes, "latency": lambda row: -row.latency}
    if sort in keys:
        rows.sort(key=keys[sort])
    return Rates(seconds, tuple(rows), tuple(_busy(before, after)), after.facts)


def _row(done: Statistics, seconds: float) -> Row:
    def per_s(counters: Counters) -> tuple[float, float, float | None]:
        mean = counters.mean_us
        return (
            round(counters.operations / seconds, 1),
            round(counters.bytes / seconds, 1),
            None if mean is None else round(mean, 1),
        )

    (read_iops, read_bytes, read_us), (write_iops, write_bytes, write_us) = per_s(done.read), per_s(done.write)
    return Row(done.volume, read_iops, write_iops, read_bytes, write_bytes, read_us, write_us)


def _busy(before: Sample, after: Sample) -> list[Busy]:
    found = []
    for target, now in after.reactors.items():
        was = {one.core: one for one in before.reactors.get(target, ())}
        for one in now:
            if (earlier := was.get(one.core)) and one.busy_s >= earlier.busy_s:
                busy, idle = one.busy_s - earlier.busy_s, one.idle_s - earlier.idle_s
                found.append(Busy(target, one.core, round(100 * busy / max(busy + idle, 1e-9), 1)))
    return found
