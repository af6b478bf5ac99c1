"""An NVMe host in Python: what a controller is, data there and back, many reads at once, a measurement.

    nvmuser volume create disk --size 1G && nvmuser controller create c0 --attach disk
    python samples/nvme_host.py $NVMUSER_STATE/run/target/c0

It overwrites the beginning of the volume. No guest may be connected to the controller: it takes one host at a time.
"""

import asyncio
import os
import sys

from nvmuser import initiator
from nvmuser.errors import NvmeStatusError, NvmuserError


def polled(controller: initiator.Controller, namespace: initiator.Namespace) -> None:
    """Commands are requests; waiting for one polls the queue."""
    data = initiator.allocate(8 * namespace.block_size)
    data.view[:] = os.urandom(len(data))
    with controller.queue(depth=8, timeout=5) as queue:
        queue.write(namespace, 0, data).wait()
        queue.flush(namespace).wait()
        back = bytearray(len(data))  # not DMA memory: copied once
        queue.read(namespace, 0, back).wait()
        print("read back what was written:", back == data.view)
        try:
            queue.read(namespace, namespace.blocks, back).wait()
        except NvmeStatusError as error:
            print("behind the end:", error)


async def awaited(controller: initiator.Controller, namespace: initiator.Namespace) -> None:
    """Commands are futures; the event loop polls."""
    async with controller.async_queue(depth=64, timeout=5) as queue:
        blocks = initiator.allocate(256 * namespace.block_size)
        size = namespace.block_size
        reads = (queue.read(namespace, n, blocks[n * size : (n + 1) * size]) for n in range(256))
        await asyncio.gather(*reads)
        print("256 reads awaited")


def main(directory: str) -> None:
    with initiator.connect(directory) as controller:
        info = controller.identify()
        print(f"{info.model}, serial {info.serial}, firmware {info.firmware}, {info.nqn}")
        for namespace in controller.namespaces():
            print(f"namespace {namespace.id}: {namespace.blocks} blocks of {namespace.block_size} bytes")
        namespace = controller.namespace(1)
        polled(controller, namespace)
        asyncio.run(awaited(controller, namespace))
        result = initiator.measure(controller, namespace, pattern="randread", depth=32, seconds=0.5)
        print(f"{result.iops:,.0f} reads a second, 99 % within {result.percentile(99):.0f} us")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except NvmuserError as error:
        sys.exit(f"{sys.argv[0]}: {error}")
