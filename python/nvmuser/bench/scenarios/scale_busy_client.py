"""The client of `scale_busy`: a process of its own, because DPDK runs once in each.

It connects to more and more controllers, and measures at each number. Prints one JSON object: IOPS by number.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nvmuser import initiator
from nvmuser.errors import NvmuserError

_MEMORY_MIB = 1024
"""A queue has a page for each of its commands: 256 queues have 256 MiB."""
_BUSY_DEPTH = 32
_MOST = 255
"""Commands that SPDK's queues of 256 entries take."""
_BYTES = 4096
_WARMUP_S = 0.2
_SLICE_S = 0.05


def main(directory: str, cpu: str, seconds: str, *numbers: str) -> None:
    """The arguments are those of the command line: where sockets are, where to run, for how long, at which numbers."""
    os.sched_setaffinity(0, {int(cpu)})
    initiator.initialise(memory_mib=_MEMORY_MIB)
    counts, controllers = sorted(map(int, numbers)), list[initiator.Controller]()
    connect = (initiator.connect(Path(directory) / f"c{number}") for number in range(counts[-1]))
    controllers.append(next(connect))
    # Before others are connected, for all numbers: what all of them are compared with.
    alone = _one(controllers[0], _BUSY_DEPTH, float(seconds))
    deep = {}
    for count in counts:
        with initiator.connect(Path(directory) / f"d{count}") as controller:
            deep[count] = _one(controller, min(count, _MOST), float(seconds))
    found = {}
    for count in counts:
        controllers += [next(connect) for _ in range(count - len(controllers))]
        found[count] = {
            "alone": alone,
            "one": _one(controllers[0], _BUSY_DEPTH, float(seconds)),
            "deep": deep[count],
            "all": _all(controllers, float(seconds)),
        }
    for controller in controllers:
        controller.close()
    print(json.dumps(found))


def _one(controller: initiator.Controller, depth: int, seconds: float) -> float:
    with initiator.Load(controller, controller.namespace(1), depth=depth, size=_BYTES) as load:
        return _iops([load], seconds)


def _all(controllers: Sequence[initiator.Controller], seconds: float) -> float:
    loads = []
    try:
        for number, each in enumerate(controllers):
            loads.append(initiator.Load(each, each.namespace(1), depth=1, size=_BYTES, seed=number + 1))
        return _iops(loads, seconds)
    finally:
        for load in loads:
            load.close()


def _iops(loads: Sequence[initiator.Load], seconds: float) -> float:
    """Of all loads together."""
    initiator.run(loads, _WARMUP_S)
    for load in loads:
        load.reset()
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        initiator.run(loads, _SLICE_S)
    results = [load.result() for load in loads]
    if any(result.errors for result in results):
        raise NvmuserError("a command failed")
    return sum(result.ios for result in results) / results[0].seconds


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except NvmuserError as error:
        sys.exit(f"nvmuser.initiator: {error}")
