"""Volumes that several hosts reach and one writes: their cost, whether they survive kills, how soon a second host is
refused.

Owns the cluster, one of our own unless another is named, and puts the pieces together. A piece is a function that
returns its part of the document: add one to `PIECES`, and a kind of volume to `shared_volumes.kinds`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvmuser.bench.measure import ceph_cluster
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.scenarios import encryption, recovery, shared_ratio
from nvmuser.bench.scenarios.shared_remote import Store
from nvmuser.bench.scenarios.shared_volumes import DISK, KINDS, Ceph, RbdKind, kinds
from nvmuser.bench.scenarios.verified import backing
from nvmuser.errors import GuestError, NvmuserError
from nvmuser.model.change import Change
from nvmuser.model.objects import Cluster, Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import find_spdk

_QUIET = Options(profile="eco", hugepages=False)
_SHORT_ROUNDS = 24
"""Of `encrypted_ratio`, each of half a second for both."""
_WRITTEN, _RATE = "24M", "8M"
"""In a round of kills, in bytes and a second: three seconds of it, where `bench recovery` writes more and as fast as it
can, so that all kinds can be killed in one run."""


@dataclass(frozen=True)
class SharedPlan:
    """What is measured, and how long.

    :param pieces: names in `PIECES`.
    :param rounds: of `rbd_ratio`, each of so many `seconds`.
    :param kills: of each kind of volume.
    :param kinds: names in `shared_volumes.kinds`.
    :param ceph: an existing cluster; None: one of our own.
    """

    pieces: tuple[str, ...]
    rounds: int = 9
    seconds: float = 2.0
    kills: int = 20
    kinds: tuple[str, ...] = KINDS
    ceph: Ceph | None = None


@dataclass
class SharedOutcome:
    """The document so far."""

    facts: dict[str, Any] = field(default_factory=dict)
    wrongs: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> str | None:
        """What was lost, in words."""
        return "; ".join(self.wrongs) or None

    def to_json(self, _plan: SharedPlan) -> dict[str, Any]:
        """The pieces' parts."""
        return self.facts


@dataclass(frozen=True)
class Bench:
    """What each piece is given."""

    plan: SharedPlan
    ceph: Ceph
    root: Path
    progress: Progress
    outcome: SharedOutcome


async def measure(plan: SharedPlan, progress: Progress) -> SharedOutcome:
    """Run every piece that is wanted; one that fails is among what is wrong.

    :raises NvmuserError: Ceph does not come up, or something has not been set up.
    """
    find_spdk()  # before Ceph is started
    outcome = SharedOutcome()
    # UNIX sockets live in it, and their paths end at 107 bytes.
    with scratch("nvmuser-") as root, _cluster(plan, root, progress) as ceph:
        for name in plan.pieces:
            try:
                outcome.facts |= await PIECES[name](Bench(plan, ceph, root, progress, outcome))
            except NvmuserError as error:
                # What the other pieces have found is not lost with it.
                outcome.wrongs.append(f"{name}: {error}")
    return outcome


@contextlib.contextmanager
def _cluster(plan: SharedPlan, root: Path, progress: Progress) -> Iterator[Ceph]:
    if plan.ceph:
        yield plan.ceph
        return
    progress.step("starting Ceph")
    with ceph_cluster.running(root / "ceph") as own:
        cluster = Cluster("bench", conf=str(own.conf), keyring=str(own.keyring))
        yield Ceph(cluster, ceph_cluster.POOL)


async def _rbd_ratio(bench: Bench) -> dict[str, Any]:
    plan = bench.plan
    found = await shared_ratio.measure(
        bench.ceph, bench.root, rounds=plan.rounds, seconds=plan.seconds, progress=bench.progress
    )
    intervals = shared_ratio.ratios(found)
    return {
        "rbd_ratio": {name: one.median for name, one in intervals.items()},
        "rbd_ratio_ci": {name: [one.low, one.high] for name, one in intervals.items()},
        "rbd_iops": found,
    }


async def _encrypted_ratio(bench: Bench) -> dict[str, Any]:
    """A file volume beside an encrypted one."""
    found = await encryption.measure(bench.root / "e", max(bench.plan.rounds, _SHORT_ROUNDS), bench.progress)
    return found.to_json()


async def _kills(bench: Bench) -> dict[str, Any]:
    """A target killed under a guest that writes and verifies, once for each kind of volume."""
    found = {}
    for name, kind in kinds(bench.ceph).items():
        if name not in bench.plan.kinds:
            continue
        bench.progress.step(f"kills: {name}")
        plan = recovery.RecoveryPlan(rounds=bench.plan.kills, standby=True, size=_WRITTEN, rate=_RATE)
        try:
            outcome = await recovery.measure(plan, bench.progress, kind)
        except NvmuserError as error:
            bench.outcome.wrongs.append(f"{name}: {error}")
            bench.progress.step(f"kills: {name}: {error}")
            continue
        if outcome.wrong:
            bench.outcome.wrongs.append(f"{name}: {outcome.wrong}")
        found[name] = {
            "rounds": len(outcome.stalls),
            "io_errors": outcome.io_errors,
            "bad_blocks": outcome.bad_blocks,
            "stall_s": max(outcome.stalls, default=None),
            "stall_median_s": sorted(outcome.stalls)[len(outcome.stalls) // 2] if outcome.stalls else None,
        }
        # It takes long, and who interrupts it has seen this much.
        bench.progress.step(f"kills: {name}: {json.dumps(found[name])}")
    return {"kills": found}


async def _refused(bench: Bench) -> dict[str, Any]:
    """A second state directory on what the first has open; seconds until it is told who has it."""
    root, ceph = bench.root / "refused", bench.ceph
    root.mkdir()
    await ceph.declare(StateDir(root / "a"))
    await ceph.declare(StateDir(root / "b"))
    bench.progress.step("a second host on the same volumes")
    file, image = backing(root / DISK), ceph.volume(DISK)
    async with Deployment.start(root / "a", _QUIET) as first, Deployment.start(root / "b", _QUIET) as second:
        kind = RbdKind(ceph)
        await kind.disk(first, root)
        await first.disk("file", file)
        try:
            seconds = {
                "rbd": await _until_refused(second, Change(create=(image,))),
                "file": await _until_refused(second, Change(create=(Volume("file", path=str(file)),))),
            }
        finally:
            await kind.remove(first)
    seconds["remote"] = await _refused_remote(bench.root / "far")
    return {"refused_s": max(seconds.values()), "refused": seconds}


async def _refused_remote(root: Path) -> float:
    """In deployments of their own, which poll: SPDK does not serve remotes by interrupts."""
    root.mkdir()
    store, polls = Store(), Options(hugepages=False)
    try:
        await store.start(root)
        declaration = store.declaration(DISK)
        async with Deployment.start(root / "a", polls) as first, Deployment.start(root / "b", polls) as second:
            await first.control.call("change", {"change": declaration.to_json()}, timeout=None)
            return await _until_refused(second, declaration)
    finally:
        await store.stop()


async def _until_refused(deployment: Deployment, change: Change) -> float:
    began = time.monotonic()
    try:
        await deployment.control.call("change", {"change": change.to_json()}, timeout=None)
    except NvmuserError:
        return time.monotonic() - began
    raise GuestError(f"{' and '.join(one.key.words for one in change.create)}: opened a second time")


Piece = Callable[[Bench], Awaitable[dict[str, Any]]]
PIECES: dict[str, Piece] = {
    "rbd_ratio": _rbd_ratio,
    "encrypted_ratio": _encrypted_ratio,
    "kills": _kills,
    "refused": _refused,
}
"""In the order in which they are measured."""
