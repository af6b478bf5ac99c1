"""What the tests of the sample board share: the program, and how a guest watches it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from nvmuser.guest import Guest

SAMPLES = Path(__file__).parents[2] / "samples"
# Until it is so: the guest is not told when the host changes something.
EVENTUALLY = "for i in $(seq 200); do {condition} && exit 0; usleep 20000; done; exit 1"
# All inputs share one bit of the board's status. For those that nobody has ever watched, 6.12's regmap_irq_thread calls
# handle_nested_irq(0): the timer's, which has no thread_fn, and the kernel jumps to 0.
WATCH_ALL = "gpiomon -c gpiochip0 --idle-timeout 10ms $(seq 16 31)"


@contextlib.asynccontextmanager
async def sample(path: Path) -> AsyncIterator[Process]:
    """The board, as a program that serves it at `path`."""
    program = SAMPLES / "gpio_pci_idio_16.py"
    board = await asyncio.create_subprocess_exec(sys.executable, program, path, stdin=PIPE, stdout=PIPE)
    try:
        async with asyncio.timeout(20):
            while not path.exists():
                assert board.returncode is None, "the sample ended"
                await asyncio.sleep(0.02)
        yield board
    finally:
        board.terminate()
        assert await board.wait() == 0
    assert not path.exists()


async def ok(guest: Guest, command: str) -> str:
    """What a command in the guest says, which must succeed."""
    return (await guest.run(command, check=True, timeout=60)).stdout.decode()
