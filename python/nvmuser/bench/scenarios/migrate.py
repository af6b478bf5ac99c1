"""Guests that move between two deployments while they write with verification, and what they saw.

Owns the deployments, the guests, and their disks. The stall of a round is the longest that one I/O of fio took; what is
verified is `nvmuser.bench.measure.migrant`'s.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.migrant import DISKS, Migrant, Seen
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.scenarios import migrate_peers
from nvmuser.errors import NvmuserError
from nvmuser.guest.move import Result
from nvmuser.guest.registry import registry
from nvmuser.guest.relocate import Options as MoveOptions
from nvmuser.guest.relocate import relocate
from nvmuser.guest.spec import MIB, GuestSpec
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import accelerator

_NAME = "migrant"
_LEAD = 2.0
"""Seconds of I/O before the guest moves."""
_LIMIT = 240.0
_BOOT = "cat /proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class MigratePlan:
    """What is measured.

    :ivar rounds: how often each guest moves: there, back, there …
    :ivar memory: bytes that a guest has.
    :ivar queues: I/O queues of each controller: the guest's CPUs.
    :ivar mode: `live`, `freeze`, or `unlogged`, in which the guest's memory is wrong afterwards.
    :ivar peers: whether guests with QEMU's own disks move too.
    """

    rounds: int = 4
    memory: int = 512 * MIB
    queues: int = 2
    mode: str = "live"
    peers: bool = False


@dataclass
class Journey:
    """What one guest saw, and QEMU reported. Times in seconds."""

    seen: list[Seen] = field(default_factory=list)
    moves: list[Result] = field(default_factory=list)
    boots: set[str] = field(default_factory=set)
    fsck_clean: bool = False

    @property
    def wrong(self) -> str | None:
        """Why the guest did not arrive whole, in words."""
        errors, blocks, memory = self._sums()
        if errors or blocks or memory:
            return f"{errors} I/O errors, {blocks} wrong blocks, {memory} pieces of memory not as they were read"
        if len(self.boots) > 1:
            return "the guest has rebooted"
        return None if self.fsck_clean else "fsck found the file system damaged"

    def _sums(self) -> tuple[int, int, int]:
        return (
            sum(one.io_errors for one in self.seen),
            sum(one.bad_blocks for one in self.seen),
            sum(one.memory_mismatches for one in self.seen),
        )

    def to_json(self) -> dict[str, Any]:
        """In JSON; times in seconds."""
        errors, blocks, memory = self._sums()
        return {
            "rounds": len(self.moves),
            "io_errors": errors,
            "bad_blocks": blocks,
            "memory_mismatches": memory,
            "guest_boots": len(self.boots),
            "fsck_clean": self.fsck_clean,
            "stall_s": _summary([one.stall for one in self.seen]),
            "downtime_s": _summary([one.downtime for one in self.moves]),
            "total_s": _summary([one.total for one in self.moves]),
            "bytes": _summary([float(one.bytes) for one in self.moves]),
        }


@dataclass
class MigrateOutcome:
    """Our guest's journey, and the peers'."""

    ours: Journey = field(default_factory=Journey)
    peers: dict[str, Journey] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Why a peer was not measured."""

    @property
    def wrong(self) -> str | None:
        """Why a guest did not arrive whole, in words."""
        wrong = [f"{name}: {one.wrong}" for name, one in self.peers.items() if one.wrong]
        return self.ours.wrong or (wrong[0] if wrong else None)

    def to_json(self, plan: MigratePlan) -> dict[str, Any]:
        """What was done, and what the guests saw; times in seconds."""
        facts: dict[str, Any] = {
            **self.ours.to_json(),
            "mode": plan.mode,
            "memory": plan.memory,
            "accelerator": accelerator(),
        }
        if plan.peers:
            facts["peers"] = {name: one.to_json() for name, one in self.peers.items()}
            facts["absent"] = self.absent
        return facts


def _summary(values: list[float]) -> dict[str, float | None]:
    return {"median": median(values) if values else None, "max": max(values, default=None)}


async def measure(plan: MigratePlan, progress: Progress) -> MigrateOutcome:
    """Run the whole of it.

    :param progress: gets each step as it begins.
    :raises GuestError: our guest does not boot, or does not arrive.
    """
    outcome = MigrateOutcome()
    # UNIX sockets live in it, and their paths end at 107 bytes.
    with scratch("nvmuser-") as root:
        progress.step("starting two targets")
        # What stands for two hosts has to share this one: a target that polls would take a core from the guest.
        eco, mode = Options(profile="eco"), {"NVMUSER_MIGRATION": plan.mode}
        async with (
            Deployment.start(root / "a", eco, environment=mode) as a,
            Deployment.start(root / "b", eco, environment=mode) as b,
        ):
            outcome.ours = await _journey(plan, a, b, await _our_disks(a, root), DISKS, "", progress)
            for peer in migrate_peers.PEERS if plan.peers else ():
                try:
                    async with migrate_peers.opened(peer, root, plan.memory) as (spec, names):
                        outcome.peers[peer] = await _journey(plan, a, b, spec, names, f"{peer}: ", progress)
                except NvmuserError as error:  # ours are measured all the same
                    outcome.absent[peer] = str(error)
    return outcome


async def _our_disks(here: Deployment, root: Path) -> GuestSpec:
    paths = migrate_peers.files(root, "ours")
    sockets = tuple([await here.disk(path.name, path) for path in paths])
    return GuestSpec(sockets=sockets, directories=tuple(here.device(path.name) for path in paths))


async def _journey(
    plan: MigratePlan,
    here: Deployment,
    there: Deployment,
    spec: GuestSpec,
    disks: tuple[str, str],
    what: str,
    progress: Progress,
) -> Journey:
    """Boot a guest here and move it; wherever it is at the end, it ends."""
    journey, both = Journey(), (registry(here.state), registry(there.state))

    async def run(command: str, *, input: bytes = b"") -> str:
        async with registry(here.state).agent(_NAME) as agent:
            return (await agent.run(command, input=input, timeout=_LIMIT, check=True)).stdout.decode()

    migrant = Migrant(run, disks)
    progress.step(f"{what}booting a guest")
    try:
        await both[0].start(_NAME, replace(spec, cpus=plan.queues, memory=plan.memory))
        await migrant.prepare()
        journey.boots.add(await run(_BOOT))
        for number in range(plan.rounds):
            progress.step(f"{what}round {number + 1} of {plan.rounds}: writing, moving, verifying")
            await migrant.begin()
            await asyncio.sleep(_LEAD)
            journey.moves.append(await relocate(here.state, there.state, _NAME, MoveOptions()))
            here, there = there, here
            journey.seen.append(await migrant.finish())
        journey.boots.add(await run(_BOOT))
        journey.fsck_clean = await migrant.end()
    finally:
        for guests in both:
            for record in guests.list():
                await guests.discard(record.name)
    return journey
