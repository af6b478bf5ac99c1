"""Child processes that outlive nothing by accident: started, watched, stopped, found again.

Owns one process: its pid file and its log. It knows neither SPDK nor the endpoint. A process is also *adopted* when the
supervisor that started it was killed: its end is seen all the same, though nobody learns its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from nvmuser.errors import TargetError
from nvmuser.hostfs.process import HeldProcess, start_time


class Process:
    """A running process."""

    def __init__(self, held: HeldProcess, pid_file: Path, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = held.pid
        self._held = held
        self._pid_file = pid_file
        self._child = child

    @classmethod
    def start(
        cls, argv: Sequence[str], *, pid_file: Path, log: Path, environment: Mapping[str, str] | None = None
    ) -> Self:
        """Start a process in a session of its own, its output appended to `log`.

        :param environment: in addition to ours.
        :raises TargetError: the program cannot be run.
        """
        try:
            with log.open("ab") as output:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**os.environ, **(environment or {})},
                )
        except OSError as error:
            raise TargetError(f"{error.filename or argv[0]}: {error.strerror}") from error
        # A later supervisor finds this process by it. A short symbolic link needs no block of a disk that may be full.
        with contextlib.suppress(OSError):
            pid_file.unlink(missing_ok=True)
            pid_file.symlink_to(f"{child.pid}:{start_time(child.pid)}")
        try:
            return cls(HeldProcess.open(child.pid, lambda: _reap(child)), pid_file, child)
        except OSError as error:  # no descriptor is left
            child.kill()
            child.wait()
            raise TargetError(f"{argv[0]}: cannot be watched: {error.strerror}") from error

    @classmethod
    def adopt(cls, pid_file: Path) -> Self | None:
        """Take over the process that a pid file names, if it is still the same one."""
        held = HeldProcess.find(*named_in(pid_file))
        return cls(held, pid_file, None) if held else None

    @property
    def alive(self) -> bool:
        return self._held.alive

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self._child is None or self._child.returncode is None:
            return "ended"
        code = self._child.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

    async def wait(self) -> None:
        """Wait until it has ended and been reaped."""
        await self._held.ended.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process, or nothing if it has ended."""
        self._held.signal(number)

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
        """Stop watching; the pid file of a process that has ended goes. May be called again."""
        self._held.close()
        if not self.alive:
            with contextlib.suppress(OSError):
                self._pid_file.unlink(missing_ok=True)


def _reap(child: subprocess.Popen[bytes]) -> None:
    child.wait()


def named_in(pid_file: Path) -> tuple[int, int]:
    """Pid and start time of the process that a pid file names; (0, 0) when it names none."""
    try:
        pid, _, started = os.readlink(pid_file).partition(":")
        return int(pid), int(started)
    except (OSError, ValueError):
        return 0, 0


def is_running(pid_file: Path) -> bool:
    """Whether the process that a pid file names lives."""
    pid, started = named_in(pid_file)
    return started > 0 and start_time(pid) == started
