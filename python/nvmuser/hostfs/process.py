"""A process of this machine, held by a pidfd: the same one whatever happens to its number.

Owns the pidfd, and closes it once. It starts nothing and reaps nothing: a child is its starter's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Self

_SO_PEERPIDFD = 77
"""Linux 6.5 and later; Python has no name for it."""


def start_time(pid: int) -> int:
    """Field 22 of proc_pid_stat(5), in the kernel's ticks: with the pid it names one process for good.

    0 if there is none, or it has ended and waits to be reaped.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The second field is the name in brackets, and may hold anything.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


class HeldProcess:
    """One process. Use it in one event loop; `close` may be called again, and from anywhere.

    The pidfd is readable only when the last of its threads has left the kernel, after `exit_mm` and `exit_files` in
    Linux's `do_exit`: so none of its asynchronous I/O (libaio waits in `exit_aio`) is in flight any more.

    :param on_end: called from the event loop before `ended` is set, to reap a child.
    """

    def __init__(self, pid: int, pidfd: int, on_end: Callable[[], None] | None = None) -> None:
        self.pid = pid
        self.ended = asyncio.Event()
        self._pidfd = pidfd
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._readable)

    @classmethod
    def open(cls, pid: int, on_end: Callable[[], None] | None = None) -> Self:
        """Hold a child that has not been reaped, or another process that has this pid now.

        :raises OSError: there is none.
        """
        return cls(pid, os.pidfd_open(pid), on_end)

    @classmethod
    def find(cls, pid: int, started: int) -> Self | None:
        """Hold the process that has this pid and this start time; None when it is gone."""
        try:
            process = cls.open(pid)
        except (OSError, OverflowError):
            return None
        # Only now does the pidfd hold whatever has this pid.
        if started and start_time(pid) == started:
            return process
        process.close()
        return None

    @classmethod
    def of_peer(cls, sock: socket.socket) -> Self:
        """Hold the process at the other end of a UNIX socket, as the kernel knows it.

        :raises ProcessLookupError: it has ended, or is in a PID namespace that is not ours.
        """
        pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if pid == 0:
            raise ProcessLookupError("in another PID namespace")
        try:
            return cls(pid, sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
        except ProcessLookupError:
            raise
        except OSError:
            return cls.open(pid)  # an older kernel

    def _readable(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._on_end:
            self._on_end()
        self.ended.set()

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process; nothing happens when it has ended or was let go."""
        if self.alive and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait_ended(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)
        return not self.alive

    def close(self) -> None:
        """Let go of it: its end is not seen any more."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
