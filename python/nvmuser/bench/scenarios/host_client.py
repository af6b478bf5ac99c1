"""`nvmuser.initiator` as one of the measured programs: a process of its own, because DPDK runs once in each.

Prints commands a second, and nothing else. `nvmuser.bench.scenarios.host_programs.nvmuser` has its arguments.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time

from nvmuser import initiator
from nvmuser.errors import NvmuserError

_LOOK = 256
"""After how many commands a worker looks at the clock."""


async def awaited(
    controller: initiator.Controller, namespace: initiator.Namespace, depth: int, size: int, seconds: int
) -> float:
    """Measure reads a second, one await for each, by `depth` tasks."""
    async with controller.async_queue(depth) as queue:
        memory = initiator.allocate(depth * size)
        places = namespace.size // size
        step = size // namespace.block_size
        deadline = time.monotonic() + seconds

        async def worker(number: int) -> int:
            choose = random.Random(number)
            lbas = [choose.randrange(places) * step for _ in range(_LOOK)]
            buffer = memory[number * size : (number + 1) * size]
            read, count = queue.read, 0
            while time.monotonic() < deadline:
                for lba in lbas:
                    await read(namespace, lba, buffer)
                count += _LOOK
            return count

        began = time.monotonic()
        counts = await asyncio.gather(*(worker(number) for number in range(depth)))
        return sum(counts) / (time.monotonic() - began)


def main(
    directory: str, cpu: str, seconds: str, what: str, pattern: str, depth: str, size: str, memory: str = ""
) -> None:
    """Connect, measure, and print commands a second. The arguments are those of the command line."""
    os.sched_setaffinity(0, {int(cpu)})
    if memory == "hugepages":
        initiator.initialise(hugepages=True)
    with initiator.connect(directory) as controller:
        namespace = controller.namespace(1)
        if what == "async":
            iops = asyncio.run(awaited(controller, namespace, int(depth), int(size), int(seconds)))
        else:
            result = initiator.measure(
                controller, namespace, pattern=pattern, depth=int(depth), size=int(size), seconds=int(seconds)
            )
            iops = result.iops
    print(iops)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except NvmuserError as error:
        sys.exit(f"nvmuser.initiator: {error}")
