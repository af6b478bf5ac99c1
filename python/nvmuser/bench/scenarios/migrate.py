"""A guest that moves between two deployments while it writes with verification, and what it saw.

Owns the deployments, the guest, and its disks. The stall of a round is the longest that one I/O of fio took; what is
verified is `nvmuser.bench.measure.migrant`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.migrant import DISK, Migrant, Seen
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.guest.move import Result
from nvmuser.guest.registry import registry
from nvmuser.guest.relocate import Options, relocate
from nvmuser.guest.spec import MIB, GuestSpec
from nvmuser.toolchain import accelerator

_NAME = "migrant"
_DISKS = ("one", "two")
_LEAD = 2.0
"""Seconds of I/O before the guest moves."""
_LIMIT = 240.0


@dataclass(frozen=True)
class MigratePlan:
    """What is measured.

    :ivar rounds: how often the guest moves: there, back, there …
    :ivar memory: bytes that the guest has.
    :ivar queues: I/O queues of each controller: the guest's CPUs.
    """

    rounds: int = 4
    memory: int = 512 * MIB
    queues: int = 2


@dataclass
class MigrateOutcome:
    """What the guest saw, and QEMU reported. Times in seconds."""

    seen: list[Seen] = field(default_factory=list)
    moves: list[Result] = field(default_factory=list)
    boots: set[str] = field(default_factory=set)
    fsck_clean: bool = False

    @property
    def wrong(self) -> str | None:
        """Why the guest did not arrive whole, in words."""
        errors, blocks, memory = self._sums()
        if errors or blocks or memory:
            return f"{errors} I/O errors, {blocks} wrong blocks, {memory} files in memory not as they were read"
        if len(self.boots) > 1:
            return "the guest has rebooted"
        return None if self.fsck_clean else "fsck found the file system damaged"

    def _sums(self) -> tuple[int, int, int]:
        return (
            sum(one.io_errors for one in self.seen),
            sum(one.bad_blocks for one in self.seen),
            sum(one.memory_mismatches for one in self.seen),
        )

    def to_json(self, plan: MigratePlan) -> dict[str, Any]:
        """What was done, and what the guest saw; times in seconds."""
        errors, blocks, memory = self._sums()
        return {
            "rounds": len(self.moves),
            "memory": plan.memory,
            "io_errors": errors,
            "bad_blocks": blocks,
            "memory_mismatches": memory,
            "guest_boots": len(self.boots),
            "fsck_clean": self.fsck_clean,
            "stall_s": _summary([one.stall for one in self.seen]),
            "downtime_s": _summary([one.downtime for one in self.moves]),
            "total_s": _summary([one.total for one in self.moves]),
            "bytes": _summary([float(one.bytes) for one in self.moves]),
            "accelerator": accelerator(),
        }


def _summary(values: list[float]) -> dict[str, float | None]:
    return {"median": median(values) if values else None, "max": max(values, default=None)}


async def measure(plan: MigratePlan, progress: Progress) -> MigrateOutcome:
    """Run the whole of it.

    :param progress: gets each step as it begins.
    :raises GuestError: the guest does not boot, or does not arrive. What it saw is in the outcome.
    """
    outcome = MigrateOutcome()
    # UNIX sockets live in it, and their paths end at 107 bytes.
    with scratch("nvmuser-") as root:
        progress.step("starting two targets")
        async with Deployment.start(root / "a") as a, Deployment.start(root / "b") as b:
            progress.step("booting a guest")
            async with _guest(plan, a, b, root):
                await _rounds(plan, a, b, outcome, progress)
    return outcome


@contextlib.asynccontextmanager
async def _guest(plan: MigratePlan, a: Deployment, b: Deployment, root: Path) -> AsyncIterator[None]:
    """A guest in the first; wherever it is at the end, it ends."""
    for name in _DISKS:
        with (root / name).open("wb") as file:
            os.truncate(file.fileno(), DISK)
    sockets = tuple([await a.disk(name, root / name) for name in _DISKS])
    directories = tuple(a.device(name) for name in _DISKS)
    spec = GuestSpec(cpus=plan.queues, memory=plan.memory, sockets=sockets, directories=directories)
    try:
        await registry(a.state).start(_NAME, spec)
        yield
    finally:
        for guests in (registry(a.state), registry(b.state)):
            for record in guests.list():
                await guests.discard(record.name)


async def _rounds(
    plan: MigratePlan, here: Deployment, there: Deployment, outcome: MigrateOutcome, progress: Progress
) -> None:
    async def run(command: str) -> str:
        async with registry(here.state).agent(_NAME) as agent:
            return (await agent.run(command, timeout=_LIMIT, check=True)).stdout.decode()

    migrant = Migrant(run)
    await migrant.prepare()
    outcome.boots.add(await run("cat /proc/sys/kernel/random/boot_id"))
    for number in range(plan.rounds):
        progress.step(f"round {number + 1} of {plan.rounds}: writing, moving, verifying")
        await migrant.begin()
        await asyncio.sleep(_LEAD)
        outcome.moves.append(await relocate(here.state, there.state, _NAME, Options()))
        here, there = there, here
        outcome.seen.append(await migrant.finish())
    outcome.boots.add(await run("cat /proc/sys/kernel/random/boot_id"))
    outcome.fsck_clean = await migrant.end()
