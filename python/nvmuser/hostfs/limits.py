"""Limits of the machine that many controllers and volumes run into: file descriptors, memory, asynchronous I/O.

Owns the figures, and the words with which each limit is raised. Nothing here changes a limit.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import ConflictError
from nvmuser.model.desired import Desired

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
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP = Path("/proc/self/cgroup")


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


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP, cgroups: Path = _CGROUPS) -> int:
    """Bytes that a process here may still use: of the machine, and of every control group that it is in (cgroup v2).

    :raises OSError: this is no Linux with /proc.
    """
    lines = (line.split() for line in meminfo.read_text(encoding="ascii").splitlines())
    free = next(int(words[1]) << 10 for words in lines if words[0] == "MemAvailable:")
    path = next((line[3:] for line in cgroup.read_text().splitlines() if line.startswith("0::")), "/")
    group = cgroups / path.lstrip("/")
    for place in (group, *group.parents):
        if place.is_relative_to(cgroups):
            free = min(free, _group_memory(place, free))
    return free


def _group_memory(group: Path, otherwise: int) -> int:
    """Bytes left of a control group's limit; `otherwise` where it has none."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        facts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return otherwise
    # The page cache counts as used, and is given up when memory is wanted.
    return otherwise if limit == "max" else max(0, int(limit) - used + int(facts.get("inactive_file", 0)))


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
