"""A network between two programs that keeps what is sent until the test says so: a TCP relay in the test's loop.

A connection on which certain data comes is held from there on; all others pass everything on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class HeldNetwork:
    """Made by `held_network`.

    :ivar port: where it listens, on 127.0.0.1.
    """

    def __init__(self, there: int) -> None:
        self.port = 0
        self._there = there
        self._connections: list[_Connection] = []
        self.mark = b""

    def hold(self, mark: bytes) -> None:
        """Keep what comes on a connection from the first piece on that has `mark` in it."""
        self.mark = mark

    async def keeps_something(self) -> None:
        """Wait until a connection is held."""
        while not any(connection.kept for connection in self._connections):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def release(self) -> None:
        """Deliver what was kept, also when its sender is gone, and keep nothing any more."""
        self.mark = b""
        for connection in self._connections:
            await connection.release()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer, *await asyncio.open_connection("127.0.0.1", self._there))
        self._connections.append(connection)
        await connection.run()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class _Connection:
    """One, and the one that goes on from it."""

    def __init__(
        self,
        network: HeldNetwork,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        self._network = network
        self._near, self._far = (reader, writer), (far_reader, far_writer)
        self._holding = False
        self.kept = bytearray()

    async def run(self) -> None:
        back = asyncio.create_task(self._back())
        with contextlib.suppress(OSError):
            while data := await self._near[0].read(1 << 16):
                self._holding |= bool(self._network.mark) and self._network.mark in data
                if self._holding:
                    self.kept += data
                    continue
                self._far[1].write(data)
                await self._far[1].drain()
        if not self._holding:
            self._far[1].close()
        await back
        self._near[1].close()

    async def _back(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._far[0].read(1 << 16):
                self._near[1].write(data)
                await self._near[1].drain()

    async def release(self) -> None:
        with contextlib.suppress(OSError):
            self._far[1].write(bytes(self.kept))
            await self._far[1].drain()
        self.kept.clear()
        self._holding = False

    def close(self) -> None:
        self._far[1].close()
        self._near[1].close()


@contextlib.asynccontextmanager
async def held_network(there: int) -> AsyncIterator[HeldNetwork]:
    """A way to port `there` of 127.0.0.1."""
    network = HeldNetwork(there)
    server = await asyncio.start_server(network.accept, "127.0.0.1", 0)
    network.port = server.sockets[0].getsockname()[1]
    try:
        yield network
    finally:
        network.close()
        server.close()
