"""How cost grows with the number of controllers: what is measured at which numbers, and the document of the result.

Owns the choice. Each part is measured by a module of its own, `scale_control` and so on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser import __version__
from nvmuser.bench.measure import environment, versions
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.report.scale_document import SCHEMA, slopes
from nvmuser.bench.scenarios import scale_busy, scale_control, scale_guests, scale_recovery
from nvmuser.errors import UsageError
from nvmuser.toolchain import find_spdk

Measure = Callable[[Path, Sequence[int], int, Progress], Awaitable[Mapping[str, Any]]]
"""Of one part: a short path for sockets, numbers of controllers, rounds, progress. What it found, by number."""
_MeasureOne = Callable[[Path, int, int, Progress], Awaitable[Mapping[str, Any]]]
"""The same, at one number."""


def _each(one: _MeasureOne) -> Measure:
    """One number after the other."""

    async def measure(root: Path, counts: Sequence[int], rounds: int, progress: Progress) -> Mapping[str, Any]:
        return {str(count): await one(root / str(count), count, rounds, progress) for count in counts}

    return measure


@dataclass(frozen=True)
class Part:
    """:param counts: numbers of controllers, unless others are asked for.

    :param most: what SPDK, this machine or NVMe allows.
    """

    measure: Measure
    counts: tuple[int, ...]
    most: int


PARTS = {
    "busy": Part(scale_busy.measure, (1, 16, 64, 256), 1000),
    "recovery": Part(_each(scale_recovery.measure), (1, 10, 50, 100), 1000),
    "guests": Part(_each(scale_guests.measure), (6,), 64),
    "control": Part(_each(scale_control.measure), (100, 500, 2000, 5000), 65_519),
}


def plan(parts: Sequence[str], counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """What is measured at which numbers.

    :param parts: none: all of them.
    :param counts: for each part; none: its own.
    :raises UsageError: more than there can be.
    """
    chosen = {name: tuple(sorted(set(counts))) or PARTS[name].counts for name in parts or PARTS}
    for name, numbers in chosen.items():
        if numbers[-1] > PARTS[name].most:
            raise UsageError(f"--counts {numbers[-1]}: {name} is measured with {PARTS[name].most} at most")
    return chosen


async def measure(root: Path, wanted: Mapping[str, Sequence[int]], rounds: int, progress: Progress) -> dict[str, Any]:
    """Measure all of it. Returns the document.

    :param root: a short path, for sockets are in it; its owner removes it.
    :param wanted: numbers of controllers, by part.
    :raises NvmuserError: a target, an endpoint or a guest does not do what is asked.
    """
    spdk = find_spdk()
    noise = await asyncio.to_thread(environment.spin)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "nvmuser": __version__,
            "commit": versions.commit(Path(__file__).parent),
            "spdk": spdk.version,
            "spdk_patches": versions.patches(spdk),
        },
        "environment": {**environment.look().to_json(), "noise": noise},
        "rounds": rounds,
    }
    for name, numbers in wanted.items():
        found[name] = await PARTS[name].measure(root / name[0], numbers, rounds, progress)
    return found | {"slope": slopes(found)}
