"""What connected controllers cost a busy one, and what many that are a little busy give together.

Owns a deployment with a file volume in memory for each controller, and the client's process on another CPU. In each
round one client connects to more and more controllers; ratios are of one round. What many give together is compared
with one that has as many commands, on as much data: what the caches hold of it is no cost of controllers.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.progress import Progress
from nvmuser.errors import TargetError, UsageError, summary
from nvmuser.model.change import Change
from nvmuser.model.objects import AnyObject, Controller, Namespace, Volume
from nvmuser.supervisor import control
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import proc

_MEMORY_FS = "/dev/shm"
_SIZE = 1 << 20
_SECONDS = 1.0
_CONNECT_S = 0.5
"""At most, for each controller: connecting, making a queue, disconnecting."""
_GRACE_S = 60.0


async def measure(root: Path, counts: Sequence[int], rounds: int, progress: Progress) -> dict[str, dict[str, Any]]:
    """IOPS of the target's one core at each number of connected controllers.

    :raises UsageError: there is one CPU only.
    :raises NvmuserError: the target or the client failed.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise UsageError("two CPUs are needed, one for the target and one for its client")
    found: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="nvmuser-", dir=_MEMORY_FS) as files:
        async with Deployment.start(root / "s", Options(cores=(cpus[-1],))) as deployment:
            outcome = await control.submit(deployment.state, Change(create=_objects(counts, Path(files))))
            if outcome.problems or outcome.pending:
                raise TargetError(summary(outcome.problems) or "the target has ended meanwhile")
            sockets = deployment.state.target_dir("x").parent
            argv = [sys.executable, "-m", "nvmuser.bench.scenarios.scale_busy_client", str(sockets), str(cpus[0])]
            argv += [str(_SECONDS), *map(str, counts)]
            limit = _GRACE_S + _CONNECT_S * max(counts) + 4 * _SECONDS * len(counts)
            for number in range(rounds):
                progress.step(f"busy, up to {max(counts)} controllers, round {number + 1} of {rounds}")
                found.append(json.loads(await asyncio.to_thread(proc.output, argv, timeout=limit)))
    return {str(count): _point([each[str(count)] for each in found]) for count in counts}


def _objects(counts: Sequence[int], files: Path) -> tuple[AnyObject, ...]:
    """One for each controller; and for each count one that holds as much data as so many of them, for one client."""
    sizes = {f"c{number}": _SIZE for number in range(max(counts))} | {f"d{count}": count * _SIZE for count in counts}
    volumes = [Volume(name, path=str(files / name), size=size) for name, size in sizes.items()]
    return (*volumes, *(Controller(volume.name, (Namespace(volume.name),)) for volume in volumes))


def _point(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds. A ratio is of one round: it holds whatever the machine did in the others."""
    one, every = (statistics.median(each[name] for each in rounds) for name in ("one", "all"))
    return {
        "iops": one,
        "ratio": statistics.median(each["one"] / each["alone"] for each in rounds),
        "all_iops": every,
        "all_ratio": statistics.median(each["all"] / each["deep"] for each in rounds),
        "us": 1e6 / one,
        "all_us": 1e6 / every,
    }
