"""What encryption at rest costs: a file volume beside an encrypted one, in the same target.

Owns one deployment for the measurement. The client is `nvmuser.initiator` in this process: no guest, so that the
target's core is what limits.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvmuser import initiator
from nvmuser.bench.measure import stats
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.errors import TargetError
from nvmuser.initiator import Controller as Host
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.supervisor import control

PATTERNS = ("randread", "randwrite")
_SIZE = 256 << 20
_BLOCK, _DEPTH = 4096, 32
_SECONDS, _WARMUP = 0.5, 0.1
"""Short, and many rounds: a disk that is shared drifts, and both are to see the same of it."""
_FILL_SECONDS = 2.0
_PLAIN, _ENCRYPTED = "plain", "encrypted"


@dataclass
class Encryption:
    """Commands a second, one value a round, by pattern and volume."""

    iops: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """`encrypted_ratio`: throughput by that of the file alone, with its 95 % interval; `iops`: medians."""
        ratios = {pattern: stats.ratio(each[_ENCRYPTED], each[_PLAIN]) for pattern, each in self.iops.items()}
        return {
            "encrypted_ratio": {pattern: ratio.median for pattern, ratio in ratios.items()},
            "encrypted_ratio_ci": {pattern: [ratio.low, ratio.high] for pattern, ratio in ratios.items()},
            "iops": {
                pattern: {name: statistics.median(values) for name, values in each.items()}
                for pattern, each in self.iops.items()
            },
        }


async def measure(root: Path, rounds: int, progress: Progress, block_size: int = 512) -> Encryption:
    """4k at depth 32, both volumes in alternating rounds.

    :param root: a directory with a short path, for sockets are in it.
    :param block_size: bytes of a logical block of both, each of which is encrypted by itself.
    :raises NvmuserError: there is no target, or an I/O has failed.
    """
    found = Encryption()
    progress.step("starting the target")
    async with Deployment.start(root / "s") as deployment:
        plain, sealed = (Volume(name, size=_SIZE, block_size=block_size) for name in (_PLAIN, "sealed"))
        volumes = (plain, sealed, Volume(_ENCRYPTED, "crypt", base=sealed.name, block_size=block_size))
        controllers = tuple(Controller(name, (Namespace(name),)) for name in (_PLAIN, _ENCRYPTED))
        await control.submit(deployment.state, Change(create=(*volumes, *controllers)))
        hosts = {
            name: await asyncio.to_thread(initiator.connect, deployment.state.target_dir(name))
            for name in (_PLAIN, _ENCRYPTED)
        }
        try:
            for name, host in hosts.items():
                progress.step(f"filling {name}")
                await _measured(host, "write", 1 << 20, 8, _FILL_SECONDS)(0)
            for pattern in PATTERNS:
                loads = {name: _measured(host, pattern, _BLOCK, _DEPTH, _SECONDS) for name, host in hosts.items()}
                found.iops[pattern] = await alternate(loads, rounds, progress, what=f"{pattern}, ")
        finally:
            for host in hosts.values():
                host.close()
    return found


def _measured(host: Host, pattern: str, size: int, depth: int, seconds: float) -> Callable[[int], Awaitable[float]]:
    def act(seed: int) -> float:
        result = initiator.measure(
            host, host.namespace(1), pattern=pattern, depth=depth, size=size, seconds=seconds, warmup=_WARMUP,
            seed=seed + 1,
        )  # fmt: skip
        if result.errors:
            raise TargetError(f"{pattern}: {result.errors} commands have failed")
        return result.iops

    async def measured(number: int) -> float:
        return await asyncio.to_thread(act, number)

    return measured
