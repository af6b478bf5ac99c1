"""A file system in memory that only the test sees."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def private_tmpfs(size: str) -> Iterator[Path]:
    """A tmpfs in a mount namespace of its own, which ends with the process that has it.

    :param size: as `mount -o size=` takes it, such as `8m`.
    """
    with _mounted(f"-t tmpfs -o size={size} tmpfs") as path:
        yield path


@contextlib.contextmanager
def private_ramfs() -> Iterator[Path]:
    """The same of a file system without holes and zeroed ranges, so that a file on it unmaps nothing."""
    with _mounted("-t ramfs ramfs") as path:
        yield path


@contextlib.contextmanager
def _mounted(what: str) -> Iterator[Path]:
    script = f"mount {what} /mnt && echo ready && exec cat"
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "no mount namespace for this user"
        yield Path(f"/proc/{process.pid}/root/mnt")
