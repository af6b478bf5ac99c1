"""Child processes that outlive nothing by accident: started, watched by pidfd, stopped.

Owns one process: its pidfd, its pid file, its log. It knows neither SPDK nor the endpoint. A process is also *adopted*
when the supervisor that started it was killed: a pidfd tells of its end all the same, though nobody learns its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from nvmuser.errors import TargetError


class Process:
    """A running process.

    The pidfd is readable only when the last of its threads has left the kernel, after `exit_mm` and `exit_files` in
    Linux's `do_exit`: so none of its asynchronous I/O (libaio waits in `exit_aio`) is in flight any more.
    """

    def __init__(self, pid: int, pid_file: Path, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self._pid_file = pid_file
        self._child = child
        self._pidfd = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._readable)

    @classmethod
    def start(cls, argv: Sequence[str], *, pid_file: Path, log: Path) -> Self:
        """Start a process in a session of its own, its output appended to `log`.

        :raises TargetError: the program cannot be run.
        """
        with log.open("ab") as output:
            try:
                child = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except OSError as error:
                raise TargetError(f"{argv[0]}: {error.strerror}") from error
        # A later supervisor finds this process by it. A short symbolic link needs no block of a disk that may be full.
        with contextlib.suppress(OSError):
            pid_file.unlink(missing_ok=True)
            pid_file.symlink_to(f"{child.pid}:{_start_time(child.pid)}")
        return cls(child.pid, pid_file, child)

    @classmethod
    def adopt(cls, pid_file: Path) -> Self | None:
        """Take over the process that a pid file names, if it is still the same one."""
        try:
            pid_text, _, start_time = os.readlink(pid_file).partition(":")
            pid = int(pid_text)
            if _start_time(pid) != start_time:
                return None
            return cls(pid, pid_file, None)
        except (OSError, ValueError):
            return None

    def _readable(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if self._child is not None:
            self._child.wait()
        self._ended.set()

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self._child is None or self._child.returncode is None:
            return "ended"
        code = self._child.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

    async def wait(self) -> None:
        """Wait until it has ended and been reaped."""
        await self._ended.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process, or nothing if it has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds. Returns when it has ended."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL. Returns when it has ended."""
        self.signal(signal.SIGKILL)
        await self.wait()

    def close(self) -> None:
        """Stop watching; the pid file of a process that has ended goes."""
        with contextlib.suppress(OSError):
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        if not self.alive:
            self._pid_file.unlink(missing_ok=True)


def _start_time(pid: int) -> str:
    """Field 22 of proc_pid_stat(5): with the pid it names a process for good."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[19]
