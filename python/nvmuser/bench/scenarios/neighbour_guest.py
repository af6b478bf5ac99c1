"""The client that is killed: a process of its own, driven by lines on its standard input.

`connect` connects to a controller, and checks that a block holds what was written to it; `die` ends this process like
`kill -9` while its writes are in flight, with its memory mapped by the target. Each is answered with a line.
`nvmuser.bench.scenarios.neighbour_acts` starts it.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from nvmuser import initiator
from nvmuser.errors import HostConnectionError, NvmuserError

READY = "ready"
CONNECT = "connect"
DIE = "die"
_MEMORY_MIB = 64
_WRITES = 32
_WRITE_BYTES = 128 << 10
_PATIENCE_S = 20.0
"""Until the controller has given up the client before."""
_PAUSE_S = 0.005


def connect(directory: str) -> initiator.Controller:
    """Connect as soon as the controller takes a client, and use it.

    :raises HostConnectionError: it does not within 20 seconds.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            controller = initiator.connect(directory)
            break
        except HostConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)
    wanted, read = os.urandom(initiator.memory.PAGE), bytearray(initiator.memory.PAGE)
    namespace = controller.namespace(1)
    with controller.queue(depth=1, timeout=_PATIENCE_S) as queue:
        queue.write(namespace, 0, wanted).wait()
        queue.flush(namespace).wait()
        queue.read(namespace, 0, read).wait()
    if read != wanted:
        raise NvmuserError("a block does not hold what was written to it")
    return controller


def die(controller: initiator.Controller) -> None:
    """Submit writes, and end without another word."""
    namespace = controller.namespace(1)
    queue = controller.queue(depth=_WRITES)
    data = initiator.allocate(_WRITE_BYTES)
    for number in range(_WRITES):
        queue.write(namespace, number * _WRITE_BYTES // namespace.block_size, data)
    os.kill(os.getpid(), signal.SIGKILL)


def main(directory: str) -> None:
    """Serve the lines of standard input until it ends."""
    initiator.initialise(memory_mib=_MEMORY_MIB)
    print(READY, flush=True)
    controller: initiator.Controller | None = None
    for line in sys.stdin:
        if line.strip() == CONNECT:
            controller = connect(directory)
            print(CONNECT, flush=True)
        elif line.strip() == DIE and controller is not None:
            die(controller)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except NvmuserError as error:
        sys.exit(f"the client that is killed: {error}")
