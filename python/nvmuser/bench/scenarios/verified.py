"""A guest that writes into an ext4 file system, what it saw of what happened below, and whether its data is whole.

Shared by the scenarios that strike below a guest. Owns neither guest nor deployment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from nvmuser.bench.measure import fio, runner
from nvmuser.guest import Guest

_SIZE = 512 << 20
MEMORY = 512 << 20
"""Of the guest, in bytes."""
_MOUNT = "/mnt"
FILE = f"{_MOUNT}/verified"


@dataclass
class Seen:
    """What the guest saw."""

    boots: set[str] = field(default_factory=set)
    io_errors: int = 0
    bad_blocks: int = 0
    fsck_clean: bool = False

    @property
    def wrong(self) -> str | None:
        """Why the guest did not survive, in words."""
        if self.io_errors or self.bad_blocks:
            return f"{self.io_errors} I/O errors, {self.bad_blocks} wrong blocks"
        if len(self.boots) > 1:
            return "the guest has rebooted"
        return None if self.fsck_clean else "fsck found the file system damaged"

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "io_errors": self.io_errors,
            "bad_blocks": self.bad_blocks,
            "guest_boots": len(self.boots),
            "fsck_clean": self.fsck_clean,
        }


def summary(values: list[float]) -> dict[str, float | None]:
    """Median and maximum."""
    return {"median": median(values) if values else None, "max": max(values, default=None)}


def backing(path: Path) -> Path:
    """A file for the disk of such a guest."""
    with path.open("wb") as file:
        file.truncate(_SIZE)
    return path


async def format_disk(guest: Guest) -> None:
    """Make the file system, and mount it."""
    script = f"mkfs.ext4 -q -E lazy_itable_init=0 /dev/nvme0n1 && mkdir -p {_MOUNT} && mount /dev/nvme0n1 {_MOUNT}"
    await guest.run(script, timeout=120.0, check=True)


async def check_disk(guest: Guest) -> bool:
    """Whether fsck finds it whole."""
    result = await guest.run(f"umount {_MOUNT} && fsck.ext4 -fn /dev/nvme0n1", timeout=120.0)
    return result.status == 0


def counted(run: runner.FioRun, seen: Seen) -> None:
    """Count what went wrong in a run."""
    for job in run.jobs:
        seen.bad_blocks += job.verify_errors
        if job.error or (job.wrong and not job.verify_errors):
            seen.io_errors += 1


def longest_io(run: runner.FioRun) -> float:
    """The longest that a write, a flush or a read of the verification took, in seconds (fio reports nanoseconds)."""
    job = json.loads(run.files[fio.OUTPUT])["jobs"][0]
    longest: int = max(job[kind]["lat_ns"]["max"] for kind in ("write", "sync", "read"))
    return longest / 1e9
