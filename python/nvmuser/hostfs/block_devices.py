"""What block devices and files lie on, and what this machine itself does with a block device: as Linux's sysfs has it.

Sources: Documentation/ABI/stable/sysfs-block and testing/sysfs-block of Linux (`partition`, `slaves`, `holders`,
`loop/backing_file`); open(2) for O_EXCL, with which a mounted or otherwise claimed device cannot be opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

Identity = tuple[int, int] | int | str
"""Device and inode of a file, the number of a block device; of what is not there yet, its path without links."""

_SYSFS = Path("/sys/dev/block")
_MOUNTS = Path("/proc/self/mountinfo")
_SWAPS = Path("/proc/swaps")


def identity(path: str) -> Identity:
    """The same for each path of a file or block device."""
    return place(path)[0]


def place(path: str) -> tuple[Identity, int]:
    """Its identity, and the number of the device that it is on. Asked of all volumes whenever one is made, it takes one
    system call for what is there."""
    try:
        info = os.stat(path)
    except OSError:
        return os.path.realpath(path), device_of(path)
    return (info.st_rdev, info.st_rdev) if stat.S_ISBLK(info.st_mode) else ((info.st_dev, info.st_ino), info.st_dev)


def device_of(path: str) -> int:
    """The number of the device that a file, there or not yet, is on; of a block device, its own."""
    while not os.path.exists(path):
        path = os.path.dirname(os.path.realpath(path))
    info = os.stat(path)
    return info.st_rdev if stat.S_ISBLK(info.st_mode) else info.st_dev


def stack(number: int) -> frozenset[Identity]:
    """A device and what it lies on: a partition on its disk, one of LVM, RAID or loop on what that is made of, and so
    on. Of a file system without a block device, the number alone."""
    found: set[Identity] = {number}
    device = _directory(number)
    below = [*([device.parent] if (device / "partition").exists() else ()), *_entries(device / "slaves")]
    for one in below:
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile
            major, _, minor = (one / "dev").read_text().partition(":")
            found |= stack(os.makedev(int(major), int(minor)))
    with contextlib.suppress(OSError):  # most are no loop devices
        backing = (device / "loop/backing_file").read_text().rstrip("\n")
        found |= {identity(backing)} | stack(device_of(backing))
    return frozenset(found)


def _directory(number: int) -> Path:
    # Resolved, since a partition is in the directory of its disk.
    return Path(os.path.realpath(_SYSFS / f"{os.major(number)}:{os.minor(number)}"))


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def uses(number: int) -> list[str]:
    """What this machine does with a device and its partitions, in words, as far as can be seen."""
    device = _directory(number)
    found: list[str] = []
    for one in (device, *(child for child in _entries(device) if (child / "partition").exists())):
        with contextlib.suppress(OSError):
            found += _uses_of(one, (one / "dev").read_text().strip())
    return found


def _uses_of(device: Path, number: str) -> Iterator[str]:
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split()
        if fields[2] == number:
            yield f"{device.name} is mounted at {fields[4]}"
    for holder in _entries(device / "holders"):
        name = holder / "dm/name"
        yield f"{device.name} is used by {name.read_text().strip() if name.exists() else holder.name}"
    if any(line.split()[0] == f"/dev/{device.name}" for line in _SWAPS.read_text().splitlines()[1:]):
        yield f"{device.name} is swap space"
