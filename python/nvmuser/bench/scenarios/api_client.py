"""A client of the API that costs little itself: HTTP/1.1 on a UNIX socket, one request after the other.

Owns its connection. It knows of HTTP what the API answers, and no more.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Self

from nvmuser.errors import NvmuserError


class ApiClient:
    """A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=1 << 26)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def _send(self, method: str, path: str, body: Any = None) -> None:
        text = json.dumps(body).encode() if body is not None else b""
        kind = "Content-Type: application/json\r\n" if text else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: api\r\n{kind}Content-Length: {len(text)}\r\n\r\n"
        self._writer.write(head.encode() + text)

    async def request(self, method: str, path: str, body: Any = None) -> bytes:
        """The body of the answer.

        :raises NvmuserError: it was refused.
        """
        self._send(method, path, body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        found = await self._reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 2"):
            raise NvmuserError(f"{method} {path}: {found.decode(errors='replace')}")
        return found

    async def watch(self, count: int) -> float:
        """Wait for so many events. Returns when the last came, as `time.monotonic` has it."""
        self._send("GET", "/v1/events?watch=true")
        await self._reader.readuntil(b": nvmuser\n\n")
        self.watching.set()
        seen = 0
        while seen < count:
            seen += (await self._reader.readline()).startswith(b"data: ")
        return asyncio.get_running_loop().time()

    @property
    def watching(self) -> asyncio.Event:
        """Set when a watch has begun."""
        if not hasattr(self, "_watching"):
            self._watching = asyncio.Event()
        return self._watching
