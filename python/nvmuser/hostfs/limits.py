"""Limits of the machine that many controllers and volumes run into: file descriptors, memory, asynchronous I/O.

Owns the figures, and the words with which each limit is raised. Nothing here changes a limit.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import ConflictError
from nvmuser.hostfs import cgroups, hugepages
from nvmuser.model.desired import Desired
from nvmuser.model.objects import TargetSettings

PER_CONTROLLER = 3
"""Descriptors: two of SPDK's listener (measured: 8,021 with 4,000), and one for what comes with a guest."""
PER_FILE = 2
RESERVE = 256
"""For the process itself: libraries, sockets, memory."""

CONTROLLER_BYTES = 75 << 10
"""Memory of the target for a controller that no guest uses yet (measured with 4,000)."""

AIO_WANTED, AIO_LEAST = 1024, 128
"""Events for asynchronous I/O that each core of a target takes: as many as there are up to the first, and it fails
with less than the second (our patch of SPDK's module/bdev/aio: one context for all files of a core)."""

_AIO = Path("/proc/sys/fs")
_PROC = Path("/proc")


def check_descriptors(desired: Desired) -> None:
    """Enough file descriptors for all of this.

    :raises ConflictError: this process, whose limit the target inherits, may not have so many.
    """
    files = sum(volume.backend == "file" for volume in desired.volumes())
    controllers = len(desired.controllers())
    needed = PER_CONTROLLER * controllers + PER_FILE * files + RESERVE
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ConflictError(
            f"{controllers} controllers and {files} file volumes need about {needed} file descriptors, the limit is "
            f"{hard}: raise it (LimitNOFILE= of a systemd unit, `* hard nofile {needed}` in /etc/security/limits.conf) "
            "and start the supervisor again"
        )


def check_memory(controllers: int) -> None:
    """Enough memory for so many controllers more.

    :raises ConflictError: this machine, or the control group that the target will be in, has less.
    """
    needed = controllers * CONTROLLER_BYTES
    free = available_memory()
    if needed > free:
        raise ConflictError(
            f"{controllers} controllers more need about {needed >> 20} MiB of memory, and {free >> 20} MiB are "
            f"available: about {free // CONTROLLER_BYTES} fit; declare fewer, or give the machine (or the unit, by "
            "MemoryMax=) more"
        )


def check_target(target: TargetSettings) -> None:
    """Enough memory for a target's process: with too little, SPDK would take what there is before it fails.

    :raises ConflictError: there is not.
    """
    free = available_memory()
    if target.memory > free and hugepages.why_unusable(target.memory):
        raise ConflictError(
            f"{target.subject}: memory of {target.memory >> 20} MiB, and {free >> 20} MiB are available, fewer in "
            "hugepages: take less, or give the machine (or the unit, by MemoryMax=) more"
        )


def available_memory(proc: Path = _PROC) -> int:
    """Bytes that a process here may still use: of the machine, and of every control group that it is in.

    :raises OSError: this is no Linux with /proc.
    """
    lines = (line.split() for line in (proc / "meminfo").read_text(encoding="ascii").splitlines())
    free = next(int(words[1]) << 10 for words in lines if words[0] == "MemAvailable:")
    left = cgroups.memory_left(proc / "self")
    return free if left is None else min(free, left)


@dataclass(frozen=True)
class AioEvents:
    """What the machine has for asynchronous I/O, all processes together."""

    used: int
    limit: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def exhausted(self) -> bool:
        """Too few are left for another core of a target."""
        return self.left < AIO_LEAST

    @property
    def fix(self) -> str:
        """The command that raises the limit."""
        return f"sysctl -w fs.aio-max-nr={max(1 << 20, 2 * self.limit)}"

    def __str__(self) -> str:
        return f"fs.aio-max-nr is {self.limit}, of which {self.used} are in use"


def aio_events(directory: Path = _AIO) -> AioEvents:
    """Ask the kernel for its figures.

    :raises OSError: it has no asynchronous I/O.
    """
    used, limit = (int((directory / name).read_text(encoding="ascii")) for name in ("aio-nr", "aio-max-nr"))
    return AioEvents(used, limit)
