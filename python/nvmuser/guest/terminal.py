"""Our own terminal, pipes and signals around a guest: its console, a command's output and input.

Owns the terminal's mode while it is borrowed. It knows nothing of how guests are made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from nvmuser.errors import GuestError
from nvmuser.guest.agent import GuestProcess

ESCAPE = b"\x1d"
"""Ctrl-]: leaves the console."""

_CHUNK = 65536


async def relay(process: GuestProcess) -> int:
    """Pass a command's output on to ours while it comes, and our input, if that is a file or a pipe, to it."""
    feeding = asyncio.create_task(_feed(process))
    try:
        async for piece in process:
            out = sys.stdout.buffer if piece.stream == "stdout" else sys.stderr.buffer
            out.write(piece.data)
            out.flush()
        return await process.wait()
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _feed(process: GuestProcess) -> None:
    async for data in _input():
        await process.write(data)
    process.close_stdin()


async def _input() -> AsyncIterator[bytes]:
    """What is piped or redirected into us; a terminal stays ours."""
    kind = os.fstat(0).st_mode
    if stat.S_ISREG(kind):
        while data := os.read(0, _CHUNK):
            yield data
    elif stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        while data := await _readable():
            yield data


async def _readable() -> bytes:
    """What comes next from our input; empty at its end."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(0, ready.set)
    try:
        await ready.wait()
        return os.read(0, _CHUNK)
    finally:
        loop.remove_reader(0)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[bool]:
    """The terminal without line editing, if we have one."""
    if not os.isatty(0):
        yield False
        return
    saved = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield True
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)


async def console(path: Path) -> None:
    """Connect our terminal with the guest's first serial port, until Ctrl-] or the guest's end.

    :raises GuestError: nobody answers there.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        raise GuestError(f"{path}: the guest's console: {error.strerror}") from error
    with _raw_terminal() as terminal:
        if terminal:
            print("[console; leave with Ctrl-]]\r", file=sys.stderr)
        tasks = [asyncio.create_task(_show(reader))]
        if terminal:
            tasks.append(asyncio.create_task(_type(writer)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()


async def _show(reader: asyncio.StreamReader) -> None:
    while data := await reader.read(_CHUNK):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


async def _type(writer: asyncio.StreamWriter) -> None:
    while data := await _readable():
        before, escape, _ = data.partition(ESCAPE)
        writer.write(before)
        await writer.drain()
        if escape:
            return
