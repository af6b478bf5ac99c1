"""Ours against QEMU's and SPDK's other transports, fairly: same guest, same jobs, same backing.

Owns what all peers have in common: the disks' files, our deployment, hugepages for all or for none. `session` runs
the rounds, `peers` makes each peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.disks import fill, output_directory
from nvmuser.bench.measure.hugepage_loan import borrowed_hugepages
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.report import records
from nvmuser.bench.rounds import session
from nvmuser.bench.rounds.matrix import Case
from nvmuser.bench.rounds.peers import MEMORY, OURS, Setup, open_peer
from nvmuser.supervisor.spdk import MEMORY_MIB, Options
from nvmuser.toolchain import find_appliance, find_qemu, find_spdk


@dataclass(frozen=True)
class ComparePlan:
    """What is compared."""

    cases: Sequence[Case]
    peers: Sequence[str]
    rounds: int = 5
    size: int = 256 << 20
    backing: str = "file"
    minutes: float = math.inf

    @property
    def session(self) -> session.SessionPlan:
        """:raises UsageError: ours is not among the peers, or no round is asked for."""
        settings = {"backing": self.backing, "size_bytes": self.size}
        return session.SessionPlan(self.cases, self.peers, OURS, self.rounds, self.minutes, settings=settings)

    @property
    def memory(self) -> int:
        """Of all guests, and of two targets: ours and SPDK's vhost."""
        return len(self.peers) * MEMORY + 2 * (MEMORY_MIB << 20)


async def compare(plan: ComparePlan, output: Path, progress: Progress, *, resume: bool = False) -> records.Comparison:
    """Run the whole plan; results are in `output` as they come, fio's own JSON too.

    :param resume: go on with what an interrupted comparison left in `output`.
    :raises NvmuserError: ours cannot run; another peer that cannot is left out, and the records say why.
    """
    rounds = plan.session
    find_spdk(), find_qemu(), find_appliance()  # before minutes are spent on files and noise
    output_directory(output)
    rounds = rounds.with_files_on(_files_on(plan, output))
    earlier = records.interrupted(output) if resume else None
    async with _common(plan, output, progress) as setup:
        with records.Writer(output / records.FILE, append=resume) as writer:
            await session.Session(
                rounds, lambda peer, cpus: open_peer(peer, setup, cpus), output, writer, progress, earlier
            ).run()
    return records.read(output)


def _files_on(plan: ComparePlan, output: Path) -> Path:
    return Path("/dev/shm") if plan.backing == "memory" else output


@contextlib.asynccontextmanager
async def _common(plan: ComparePlan, output: Path, progress: Progress) -> AsyncIterator[Setup]:
    """What all peers share, gone afterwards."""
    files = tempfile.TemporaryDirectory(dir=_files_on(plan, output), prefix="disks-")
    with files, scratch("nvmuser-bench-") as sockets, borrowed_hugepages(plan.memory) as lacking:
        backing = {peer: Path(files.name) / peer for peer in plan.peers}
        progress.step("writing the disks' files")
        for path in backing.values():
            await asyncio.to_thread(fill, path, plan.size)
        options = Options(hugepages=lacking is None)
        async with Deployment.start(sockets / "state", options) as deployment:
            yield Setup(sockets, backing, deployment, lacking)
