"""A slow disk, by what the kernel has for that: I/O throttling by a control group.

SPDK's delay volume would not do: it dies with the process, and with it what it has in flight.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_BLKIO = Path("/sys/fs/cgroup/blkio")


@contextlib.contextmanager
def throttled(where: Path, rate: int) -> Iterator[Path]:
    """A control group whose processes read and write at most `rate` bytes a second each on the device of `where`.

    Its `cgroup.procs` takes their pids. Skips the test where there is no such thing.
    """
    group = _BLKIO / f"nvmuser-{os.getpid()}"
    device = os.stat(where).st_dev
    try:
        group.mkdir()
        for direction in ("read", "write"):
            limit = group / f"blkio.throttle.{direction}_bps_device"
            limit.write_text(f"{os.major(device)}:{os.minor(device)} {rate}")
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no I/O throttling by a blkio control group here: {error}")
    try:
        yield group
    finally:
        deadline = time.monotonic() + 30
        while (group / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            select.select([], [], [], 0.05)
        group.rmdir()


def bytes_written(pid: int) -> int:
    """What the process has submitted so far, whether it is done or not (proc_pid_io(5))."""
    facts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(facts["write_bytes"])
