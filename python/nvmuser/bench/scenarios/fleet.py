"""`nvmuser bench fleet`: what it takes to declare things for several hosts, and how that grows with their number.

Owns an etcd and, in turn, hosts with real targets on this one machine, and simulated ones. Everything that is written
goes the way of commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.etcd import Etcd, running
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.scenarios import fleet_hosts
from nvmuser.bench.scenarios.fleet_simulated import host_name
from nvmuser.errors import FleetError
from nvmuser.fleet import membership
from nvmuser.fleet.keys import FleetKeys
from nvmuser.fleet.session import Session, opened, session
from nvmuser.fleet.settings import FleetSettings
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.model.where import Where
from nvmuser.supervisor.control import local_actor
from nvmuser.toolchain import find_spdk

_PROCESSES = 2
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class FleetPlan:
    """:param hosts: with real targets; 0: none.
    :param controllers: of each of them.
    :param changes: single ones, of which the 99th percentile is taken.
    :param simulated: numbers of simulated hosts, each in a fleet of its own.
    :param outage: seconds without etcd, while a client writes; 0: none.
    """

    hosts: int = 3
    controllers: int = 1000
    changes: int = 100
    simulated: tuple[int, ...] = (10, 100, 300, 1000)
    outage: float = 10.0


async def measure(root: Path, plan: FleetPlan, progress: Progress) -> dict[str, Any]:
    """Everything that a plan asks for.

    :raises NvmuserError: etcd is not installed, or something was refused.
    """
    document: dict[str, Any] = {"hosts": plan.hosts, "controllers": plan.controllers}
    if plan.hosts:
        find_spdk()
        with running(Etcd(root / "etcd")) as etcd:
            document |= await fleet_hosts.measure(root, etcd, plan, progress)
    document["simulated"] = {}
    for count in plan.simulated:
        progress.step(f"{count} simulated hosts")
        with running(Etcd(root / f"etcd{count}")) as etcd:
            document["simulated"][str(count)] = await _simulated(etcd.url, count, plan.changes)
    return document


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` percent of these do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]


async def _simulated(url: str, count: int, changes: int) -> dict[str, float]:
    fleet = "simulated"
    async with opened(FleetSettings(fleet, "", (url,))) as client:
        await membership.init(client, FleetKeys(fleet))
    began = time.monotonic()
    async with _processes(url, fleet, count), session(FleetSettings(fleet, "", (url,))) as one:
        await _until_live(one, count)
        joined = time.monotonic() - began
        whole = [pair for number in range(count) for pair in _pair(number)]
        wheres = {key.key: Where(host_name(number)) for number in range(count) for key in _pair(number)}
        began = time.monotonic()
        await one.change(Change(create=tuple(whole)), local_actor(), wheres, "")
        applied = time.monotonic() - began
        took = [await _change(one, number % count) for number in range(changes)]
    return {
        "join_s": joined,
        "apply_s": applied,
        "change_p50_s": statistics.median(took),
        "change_p99_s": percentile(took, 99),
    }


def _pair(number: int) -> tuple[Volume, Controller]:
    name = f"d{number}"
    return Volume(name, size=1 << 30), Controller(name, (Namespace(name),))


async def _change(one: Session, number: int) -> float:
    """A volume more on one host, as in a rolling change. Returns the seconds until that host says that it has it."""
    began = time.monotonic()
    new = Volume(f"n{time.monotonic_ns()}", size=1 << 20)
    await one.change(Change(create=(new,)), local_actor(), {}, host_name(number))
    return time.monotonic() - began


async def _until_live(one: Session, count: int) -> None:
    """:raises FleetError: not all hosts have come."""
    end = time.monotonic() + _PATIENCE_S
    while (live := len((await one.view()).live)) < count:
        if time.monotonic() > end:
            raise FleetError(f"{live} of {count} simulated hosts are there after {_PATIENCE_S:.0f} s")
        await asyncio.sleep(0.1)  # it is asked for again: a watch would be one more client


@contextlib.asynccontextmanager
async def _processes(url: str, fleet: str, count: int) -> AsyncIterator[None]:
    """The simulated hosts, in a few processes."""
    module, pipe = "nvmuser.bench.scenarios.fleet_simulated", asyncio.subprocess.PIPE
    shares = [range(count)[index::_PROCESSES] for index in range(_PROCESSES)]
    started, first = [], 0
    try:
        for share in shares:
            words = (sys.executable, "-m", module, url, fleet, str(first), str(len(share)))
            started.append(await asyncio.create_subprocess_exec(*words, stdin=pipe))
            first += len(share)
        yield
    finally:
        for process in started:
            assert process.stdin
            process.stdin.close()
        for process in started:
            await process.wait()
