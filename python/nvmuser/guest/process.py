"""A QEMU process: started by us, or found by its pid and start time; watched by its pidfd.

Owns the process from its start to its certain end. It knows nothing of what runs in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

from nvmuser.errors import GuestError

_KILL_GRACE = 10.0

# The parent may die between fork and prctl, and then nobody signals: the shell looks whether it is still there.
_DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')


def start_time(pid: int) -> int:
    """When a process started, in the kernel's ticks: with the pid it names one process for ever. 0 if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The second field is the name in brackets, and may hold anything.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


class QemuProcess:
    """One QEMU. `ended` is set as soon as it is gone, whoever ended it."""

    def __init__(self, pid: int, log: Path, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.log = log
        self.ended = asyncio.Event()
        self._child = child
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._take_end)

    @classmethod
    def start(cls, argv: Sequence[str], log: Path, descriptors: Collection[int], *, foreground: bool) -> Self:
        """Start it in a session of its own. In the `foreground` it is killed when we die, however we die.

        :param descriptors: what it inherits, besides its log.
        :raise GuestError: it cannot be started.
        """
        prefix = (*_DIE_WITH_US, str(os.getpid())) if foreground else ()
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(argv)}\n".encode())
            output.flush()
            try:
                child = subprocess.Popen(
                    [*prefix, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=tuple(descriptors),
                )
            except OSError as error:
                raise GuestError(f"{argv[0]}: {error.strerror}") from error
        return cls(child.pid, log, child)

    @classmethod
    def find(cls, pid: int, started: int, log: Path) -> Self | None:
        """The process that had this pid and start time, or None when it is gone."""
        try:
            process = cls(pid, log, None)
        except ProcessLookupError:
            return None
        # Only now does the pidfd hold whatever has this pid.
        if start_time(pid) != started:
            process.close()
            return None
        return process

    def _take_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if self._child is not None:
            self._child.wait()
        self.ended.set()

    def why(self) -> str:
        """QEMU's own last words, or how it ended."""
        written = self.log.read_text(errors="replace").splitlines()
        lines = [line for line in written if not line.startswith("$ ") and ": warning: " not in line]
        ending = f"exit status {self._child.returncode}" if self._child is not None else "it is gone"
        return " | ".join(line.strip() for line in lines[-3:] if line.strip()) or ending

    async def wait_ended(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        try:
            await asyncio.wait_for(self.ended.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def kill(self) -> None:
        """End it for certain."""
        while not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await self.wait_ended(_KILL_GRACE)

    def close(self) -> None:
        """Stop watching."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
