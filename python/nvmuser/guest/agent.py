"""The host's side of the guest's agent: runs commands in the guest over a serial port, several at once.

Owns the connection to the serial port's UNIX socket, the session, and the commands in flight. It neither starts QEMU
nor knows what is run. The program in the guest, and the protocol, are in appliance/agent/agent.c.

The connection outlives a reboot of the guest: the agent sends hello with the kernel's boot id, the commands of the boot
before end with `GuestRebooted`, and new ones can be run. What ends it is QEMU's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from nvmuser.errors import UsageError
from nvmuser.guest.command import (
    AgentError,
    CommandFailed,
    CommandResult,
    CommandTimeout,
    GuestProcess,
    GuestRebooted,
    Output,
)
from nvmuser.guest.frames import MAX_PAYLOAD, Decoder, Frame, encode

__all__ = [
    "Agent",
    "AgentError",
    "CommandFailed",
    "CommandResult",
    "CommandTimeout",
    "GuestProcess",
    "GuestRebooted",
    "Output",
]

_GREETING_PERIOD = 0.5
_PING_PERIOD = 30.0
_KILL_GRACE = 10.0


class Agent:
    """One session with the agent of one guest. An async context manager; for any number of tasks of one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, greet: bool = True) -> None:
        self._greeting = greet
        self._reader = reader
        self._writer = writer
        self._session = secrets.randbits(63) + 1
        self._in_session = False
        self._boot_id = ""
        self._booted = asyncio.Event()
        self._sequence = 0
        self._expected = 0
        self._processes: dict[int, GuestProcess] = {}
        self._gone: AgentError | None = None
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._keep_in_touch())]

    @classmethod
    async def connect(cls, path: Path, *, greet: bool = True) -> Self:
        """Connect to the serial port's socket. `wait_boot` shows whether there is an agent behind it.

        :param greet: there may be an agent that has sent hello already. Not for a guest that is about to boot: UEFI
            takes what comes on any serial port for typing, and ends in its shell.
        :raises AgentError: nobody listens there.
        """
        try:
            return cls(*await asyncio.open_unix_connection(path), greet=greet)
        except OSError as error:
            raise AgentError(f"{path}: the guest's agent port: {error.strerror}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the session: what still runs is killed by the next one, or by the guest's end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._end_all(AgentError("the connection to the guest's agent was closed"))
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    @property
    def boot_id(self) -> str:
        """The kernel's id of the boot in which the agent runs; empty before its hello."""
        return self._boot_id

    async def wait_boot(self, previous: str = "", *, timeout: float) -> str:  # noqa: ASYNC109 (its end is an error of ours)
        """Wait for an agent of another boot than `previous`; return its boot's id.

        :raises AgentError: not within `timeout` seconds, or the connection ended.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._in_session or self._boot_id == previous:
                    if self._gone is not None:
                        raise self._gone
                    self._booted.clear()
                    await self._booted.wait()
        except TimeoutError:
            raise AgentError(f"no word from the guest's agent within {timeout:g} s") from None
        return self._boot_id

    @contextlib.asynccontextmanager
    async def stream(self, command: str) -> AsyncIterator[GuestProcess]:
        """Run a command of /bin/sh; its output comes while it runs. It does not outlive the context.

        :raises AgentError: the connection has ended.
        :raises UsageError: the command does not fit into a frame.
        """
        text = command.encode()
        if len(text) > MAX_PAYLOAD or b"\0" in text:
            raise UsageError(f"a command for the guest may have {MAX_PAYLOAD} bytes and no null; use its input instead")
        if self._gone is not None:
            raise self._gone
        identity = secrets.randbits(32) | 1
        process = GuestProcess(self, identity, command)
        self._processes[identity] = process
        try:
            self.send(b"R", identity, text)
            yield process
        finally:
            try:
                if not process.ended:
                    process.kill()
                    with contextlib.suppress(TimeoutError, AgentError):
                        await asyncio.wait_for(process.wait(), _KILL_GRACE)
            finally:
                del self._processes[identity]

    async def run(
        self,
        command: str,
        *,
        input: bytes = b"",
        timeout: float | None = None,  # noqa: ASYNC109
        check: bool = False,
    ) -> CommandResult:
        """Run a command of /bin/sh to its end.

        :raises CommandTimeout: it did not end within `timeout` seconds, and was killed.
        :raises CommandFailed: `check`, and its status is not 0.
        :raises AgentError: how it ended is not known.
        """
        async with self.stream(command) as process:
            try:
                async with asyncio.timeout(timeout):
                    _, result = await asyncio.gather(process.feed(input), process.collect())
            except TimeoutError:
                raise CommandTimeout(f"in the guest: {command!r} did not end within {timeout:g} s") from None
        if check and result.status != 0:
            raise CommandFailed(command, result)
        return result

    async def put(self, path: str, data: bytes, *, timeout: float | None = 60) -> None:  # noqa: ASYNC109
        """Write a small file in the guest."""
        await self.run(f"cat > {shlex.quote(path)}", input=data, timeout=timeout, check=True)

    async def get(self, path: str, *, timeout: float | None = 60) -> bytes:  # noqa: ASYNC109
        """Read a small file of the guest."""
        return (await self.run(f"cat {shlex.quote(path)}", timeout=timeout, check=True)).stdout

    def send(self, kind: bytes, command: int = 0, payload: bytes = b"") -> None:
        """Send one frame; nothing when the connection has ended, for then every command has ended too."""
        if self._gone is not None or self._writer.is_closing():
            return
        self._writer.write(encode(Frame(kind, self._sequence, command, payload)))
        self._sequence = (self._sequence + 1) & 0xFFFF

    async def _keep_in_touch(self) -> None:
        """Greets until the agent answers, then now and again while commands run: a lost last frame shows as a gap."""
        while True:
            if self._processes if self._in_session else self._greeting:
                self._greet()
            await asyncio.sleep(_PING_PERIOD if self._in_session else _GREETING_PERIOD)

    def _greet(self) -> None:
        self.send(b"H", 0, struct.pack("<Q", self._session))

    async def _receive(self) -> None:
        decoder = Decoder()
        reason = "QEMU closed it"
        try:
            while data := await self._reader.read(1 << 16):
                for frame in decoder.feed(data):
                    self._take(frame)
        except OSError as error:
            reason = str(error.strerror)
        self._gone = AgentError(f"the connection to the guest's agent ended: {reason}")
        self._end_all(self._gone)
        self._booted.set()

    def _take(self, frame: Frame) -> None:
        if frame.kind == b"h" and len(frame.payload) >= 8:
            self._take_hello(frame)
            return
        if not self._in_session:
            return  # for the session before
        self._check_sequence(frame)
        if frame.kind == b"l":
            self._lost("to")
        elif frame.command in self._processes:
            self._processes[frame.command].take(frame)

    def _take_hello(self, frame: Frame) -> None:
        (session,) = struct.unpack_from("<Q", frame.payload)
        boot_id = frame.payload[8:].decode(errors="replace")
        if session == self._session and self._in_session and boot_id == self._boot_id:
            self._check_sequence(frame)
            return
        if self._in_session:
            # Another agent has started: it knows nothing of what ran.
            self._in_session = False
            what = "rebooted" if boot_id != self._boot_id else "started its agent again"
            self._end_all(GuestRebooted(f"the guest {what} while the command ran"))
        if session != self._session:
            self._greeting = True  # there is an agent now: until it answers
            self._greet()
            return
        self._in_session = True
        self._greeting = False  # a next agent sends hello by itself
        self._boot_id = boot_id
        self._expected = (frame.sequence + 1) & 0xFFFF
        self._booted.set()

    def _check_sequence(self, frame: Frame) -> None:
        if frame.sequence != self._expected:
            self._lost("from")
        self._expected = (frame.sequence + 1) & 0xFFFF

    def _lost(self, direction: str) -> None:
        for process in self._processes.values():
            process.kill()
        self._end_all(AgentError(f"the serial line lost a part of what was sent {direction} the guest"))

    def _end_all(self, reason: AgentError) -> None:
        for process in self._processes.values():
            process.end(reason)
