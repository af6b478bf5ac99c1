"""File systems of a given size, and what keeps them full."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(path: Path, size: str, kind: str = "tmpfs") -> Iterator[None]:
    """A file system of a given size at `path`; just a directory for a user who may not mount one.

    :param kind: tmpfs, or ext4 in a file beside `path`.
    """
    path.mkdir()
    if os.geteuid() != 0:
        yield
        return
    if kind == "tmpfs":
        argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
    else:
        image = path.with_name(f"{path.name}.img")
        subprocess.run(["truncate", "-s", size, image], check=True)
        # Without blocks that are kept for root.
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        argv = ["mount", "-o", "loop", str(image), str(path)]
    subprocess.run(argv, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> None:
    """Write to `path` until nothing more fits."""
    if not path.parent.is_mount():
        pytest.skip("only root can mount a file system of a given size")
    with path.open("ab", buffering=0) as file:
        _fill(file.fileno())
    assert os.statvfs(path).f_bavail == 0


def _fill(number: int) -> None:
    for size in (1 << 20, 4096, 1):
        with contextlib.suppress(OSError):
            while True:
                os.write(number, bytes(size))


@contextlib.contextmanager
def kept_full(path: Path) -> Iterator[None]:
    """Fill a file system with the file `path`, and take whatever becomes free at once, as long as the block lasts."""
    fill(path)
    stop = threading.Event()

    def go_on_filling() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.wait(0.002):
                _fill(file.fileno())

    filler = threading.Thread(target=go_on_filling)
    filler.start()
    try:
        yield
    finally:
        stop.set()
        filler.join()
        path.unlink()
