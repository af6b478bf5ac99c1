"""What our servers of gRPC have in common: a UNIX socket of their user's alone, and when they end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvmuser.errors import ConflictError
from nvmuser.hostfs.sockets import answers

_GRACE_S = 5.0


def listen_unix(server: Any, path: Path, said: str) -> None:
    """Have a server listen at `path`, which only root and who runs this can connect to.

    :param said: the option that named it, for the error.
    :raises ConflictError: another process listens there.
    """
    if answers(path):
        raise ConflictError(f"{said}: another process listens there")
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(before)


async def run(server: Any, started: Callable[[], None]) -> int:
    """Serve until SIGTERM or SIGINT. Returns the number of the signal.

    :param started: called when calls are taken.
    """
    ended: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.put_nowait, int(number))
    await server.start()
    started()
    found = await ended.get()
    await server.stop(_GRACE_S)
    return found
