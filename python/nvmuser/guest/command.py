"""Commands in a guest: how they end, what they put out, and the handle of one that runs.

Owns one command's output, input window and end. How frames travel, and which command they belong to, is decided in
`nvmuser.guest.agent`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from nvmuser.errors import GuestError
from nvmuser.guest.frames import Frame

_STDIN_WINDOW = 8192
_STDIN_CHUNK = 4096


class Line(Protocol):
    """What a command needs of the agent's connection."""

    def send(self, kind: bytes, command: int = 0, payload: bytes = b"") -> None:
        """Send one frame to the guest."""
        ...


class AgentError(GuestError):
    """The agent cannot be reached, could not start a command, or the line lost a part of a message."""


class GuestRebooted(AgentError):
    """The guest, or its agent, started again while the command ran. What the command did is not known."""


class CommandTimeout(GuestError):
    """The command did not end within its deadline; it has been killed."""


class CommandFailed(GuestError):
    """The command ended with a status other than 0, and `check` was asked for."""

    def __init__(self, command: str, result: CommandResult) -> None:
        self.result = result
        lines = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace").splitlines()
        last = f": {lines[-1]}" if lines else ""
        super().__init__(f"in the guest: {command!r} ended with status {result.status}{last}")


@dataclass(frozen=True)
class CommandResult:
    """How a command ended. `status` is its exit status, or 128 + n when signal n killed it."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class Output:
    """A piece of a command's output."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class GuestProcess:
    """A command that runs in the guest; made by `Agent.stream`. Iterate over it for its output, once."""

    def __init__(self, line: Line, identity: int, command: str) -> None:
        self.command = command
        self._line = line
        self._id = identity
        self._output: asyncio.Queue[Output | None] = asyncio.Queue()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ended.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._window = _STDIN_WINDOW
        self._window_moved = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Its output as it comes, until it has ended.

        :raises AgentError: how the command went on is not known.
        """
        while (piece := await self._output.get()) is not None:
            yield piece
        await self.wait()

    async def wait(self) -> int:
        """Its status, see `CommandResult`.

        :raises AgentError: how the command ended is not known.
        """
        return await asyncio.shield(self._ended)

    async def write(self, data: bytes) -> None:
        """Send input. Returns when the guest has taken it or has room for it; what nobody reads any more is dropped."""
        view = memoryview(data)
        while view and not self._ended.done():
            if self._window == 0:
                self._window_moved.clear()
                await self._window_moved.wait()
                continue
            piece = view[: min(self._window, _STDIN_CHUNK)]
            self._window -= len(piece)
            view = view[len(piece) :]
            self._line.send(b"I", self._id, bytes(piece))

    def close_stdin(self) -> None:
        """The input ends here."""
        self._line.send(b"I", self._id)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal the command and what it has started in its process group."""
        self._line.send(b"S", self._id, bytes([number]))

    async def feed(self, data: bytes) -> None:
        """All of its input, and the end of it."""
        await self.write(data)
        self.close_stdin()

    async def collect(self) -> CommandResult:
        """All of its output, and its status."""
        parts: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        async for piece in self:
            parts[piece.stream].append(piece.data)
        return CommandResult(await self.wait(), b"".join(parts["stdout"]), b"".join(parts["stderr"]))

    def take(self, frame: Frame) -> None:
        """Handle a frame of the agent about this command."""
        if frame.kind in (b"o", b"e"):
            self._output.put_nowait(Output("stdout" if frame.kind == b"o" else "stderr", frame.payload))
        elif frame.kind == b"k":
            self._window += struct.unpack("<I", frame.payload)[0]
            self._window_moved.set()
        elif frame.kind == b"x":
            self.end(struct.unpack("<i", frame.payload)[0])
        elif frame.kind == b"f":
            reason = os.strerror(struct.unpack("<I", frame.payload)[0])
            self.end(AgentError(f"the guest could not start {self.command!r}: {reason}"))

    def end(self, outcome: int | AgentError) -> None:
        """It has a status, or never will."""
        if self._ended.done():
            return
        if isinstance(outcome, int):
            self._ended.set_result(outcome)
        else:
            self._ended.set_exception(outcome)
        self._output.put_nowait(None)
        self._window_moved.set()

    @property
    def ended(self) -> bool:
        """Whether its end is known."""
        return self._ended.done()
