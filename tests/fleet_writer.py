"""A host that writes to a controller's first namespace for as long as it can: `fleet_writer.py DIRECTORY EPOCH`.

Each block bears the writer's epoch and a number that grows, and is read before it is written. Prints `w BLOCK NUMBER`
before a write, `a BLOCK NUMBER` when it was answered, `x BLOCK EPOCH NUMBER` for a block that is not as this writer
left it and bears no later epoch, and `e REASON` for an error, after which it connects again.
"""

from __future__ import annotations

import random
import struct
import sys
import time

from nvmuser import initiator
from nvmuser.errors import NvmuserError

BLOCKS, BLOCK, FORM = 64, 4096, struct.Struct(">8sQQQ")
MAGIC = b"epoch\0\0\0"


def content(epoch: int, number: int, block: int) -> bytes:
    """Of a block."""
    return FORM.pack(MAGIC, epoch, number, block).ljust(BLOCK, bytes([number % 251]))


def said(data: bytes) -> tuple[int, int] | None:
    """Epoch and number of a block; None where nothing was written. Fails for one that nobody has written so."""
    if not any(data):
        return None
    magic, epoch, number, block = FORM.unpack(data[: FORM.size])
    assert magic == MAGIC
    assert data == content(epoch, number, block), "a torn block"
    return epoch, number


def write(directory: str, epoch: int) -> None:
    # Numbers of several writers of one epoch, one after the other, grow too.
    number = first = time.time_ns()
    last, answered = dict[int, set[int]](), dict[int, int]()
    while True:
        try:
            with initiator.connect(directory) as controller, controller.queue(depth=4, timeout=600) as queue:
                namespace, memory = controller.namespace(1), initiator.allocate(BLOCK)
                per = BLOCK // namespace.block_size
                while True:
                    block, number = random.randrange(BLOCKS), number + 1
                    queue.read(namespace, block * per, memory).wait()
                    found = said(bytes(memory.view)) or (0, 0)
                    mine = last.get(block, set())
                    lost = block in answered and found < (epoch, answered[block])
                    if lost or (found[0] == epoch and found[1] > first and found[1] not in mine):
                        print("x", block, *found, flush=True)
                    print("w", block, number, flush=True)
                    last[block] = mine | {number}
                    queue.write(namespace, block * per, content(epoch, number, block)).wait()
                    last[block], answered[block] = {number}, number
                    print("a", block, number, flush=True)
                    time.sleep(0.005)
        except NvmuserError as error:
            print("e", " ".join(str(error).split()), flush=True)
            time.sleep(0.05)


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))
