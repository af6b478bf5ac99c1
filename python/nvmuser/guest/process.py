"""A QEMU process: started by us, or found by its pid and start time; watched by its pidfd.

Owns the process from its start to its certain end. It knows nothing of what runs in it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

from nvmuser.errors import GuestError
from nvmuser.hostfs.process import HeldProcess

_KILL_GRACE = 10.0

_OWN_WORDS = re.compile(r"qemu[\w.+-]*: |ERROR:")
"""How a line of QEMU's own begins (error_report in util/error-report.c, hw_error in system/cpus.c), or of GLib's."""

# The parent may die between fork and prctl, and then nobody signals: the shell looks whether it is still there.
_DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')


class QemuProcess:
    """One QEMU. `ended` is set as soon as it is gone, for any reason."""

    def __init__(self, held: HeldProcess, log: Path, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = held.pid
        self.log = log
        self.ended = held.ended
        self._held = held
        self._child = child

    @classmethod
    def start(cls, argv: Sequence[str], log: Path, descriptors: Collection[int], *, foreground: bool) -> Self:
        """Start it in a session of its own. In the `foreground` it is killed when we die, however we die.

        :param descriptors: what it inherits, besides its log.
        :raises GuestError: it cannot be started.
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

        def reap() -> None:
            child.wait()

        return cls(HeldProcess.open(child.pid, reap), log, child)

    @classmethod
    def find(cls, pid: int, started: int, log: Path) -> Self | None:
        """The process that had this pid and start time, or None when it is gone."""
        held = HeldProcess.find(pid, started)
        return cls(held, log, None) if held else None

    def why(self) -> str:
        """QEMU's own last words, or how it ended."""
        written = self.log.read_text(errors="replace").splitlines()
        lines = [line.strip() for line in written if not line.startswith("$ ") and ": warning: " not in line]
        # What follows may be long: after a hardware error QEMU prints every CPU's registers.
        said = [line for line in lines if _OWN_WORDS.match(line)]
        ending = f"exit status {self._child.returncode}" if self._child is not None else "it is gone"
        return " | ".join(line for line in (said or lines)[-3:] if line) or ending

    async def wait_ended(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        return await self._held.wait_ended(seconds)

    async def kill(self) -> None:
        """End it for certain."""
        while not self.ended.is_set():
            self._held.signal(signal.SIGKILL)
            await self.wait_ended(_KILL_GRACE)

    def close(self) -> None:
        """Stop watching."""
        self._held.close()
