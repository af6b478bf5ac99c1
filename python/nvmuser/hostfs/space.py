"""What has been promised to volumes, and what is there: of the file systems that their files are on.

A file of ours is sparse: it takes space as it is written. Its volume was promised all of its size, so that what all of
them may still write is counted together; a thin one was promised nothing, which is why only warnings count it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import UsageError
from nvmuser.model.capacity import claiming
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Volume
from nvmuser.model.sizes import approximate, format_size


@dataclass(frozen=True)
class Space:
    """Of a file system or a pool, in bytes.

    :param promised: what volumes may still write.
    """

    where: str
    total: int
    free: int
    promised: int
    volumes: tuple[str, ...]

    @property
    def short(self) -> bool:
        """More is promised than there is: a guest may get errors of a full disk while its disk has room."""
        return self.promised > self.free

    def __str__(self) -> str:
        return (
            f"{self.where}: {approximate(self.free)} of {approximate(self.total)} free, and "
            f"{approximate(self.promised)} promised to volumes and not written yet"
        )


def file_systems(volumes: Iterable[Volume]) -> list[Space]:
    """Those that files of these volumes are on, or will be on. What cannot be looked at is left out."""
    by_device: dict[int, list[tuple[Volume, str, int]]] = {}
    for volume in volumes:
        if volume.backend == "file" and (found := _unwritten(volume)):
            device, directory, size = found
            by_device.setdefault(device, []).append((volume, directory, size))
    return [_space(found) for found in by_device.values()]


def _space(found: list[tuple[Volume, str, int]]) -> Space:
    directory = Path(found[0][1])
    info = os.statvfs(directory)
    return Space(
        f"file system at {mount_point(directory)}",
        info.f_blocks * info.f_frsize,
        info.f_bavail * info.f_frsize,
        sum(size for _, _, size in found),
        tuple(volume.name for volume, _, _ in found),
    )


def mount_point(directory: Path) -> Path:
    """Where its file system is mounted: what an operator knows it by, whichever volume is looked at."""
    place = Path(os.path.realpath(directory))
    return next(one for one in (place, *place.parents) if os.path.ismount(one) or one == one.parent)


def _unwritten(volume: Volume) -> tuple[int, str, int] | None:
    """Device number and directory of its file system, and what it may still write there; None: on no file system. It is
    asked of all volumes whenever one is made."""
    directory = os.path.dirname(volume.path) or "."
    try:
        info = os.stat(volume.path)
    except FileNotFoundError:
        while not os.path.exists(directory):
            directory = os.path.dirname(directory) or "."
        return os.stat(directory).st_dev, directory, volume.size
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode):
        return None
    return info.st_dev, directory, max(0, volume.size - allocated(info))


def allocated(info: os.stat_result) -> int:
    """Bytes that a file takes of its file system (stat(2): st_blocks counts 512 bytes)."""
    return info.st_blocks * 512


def check(before: Desired, after: Desired, change: Change) -> None:
    """What is new, has grown or is thin no more fits beside all that is promised already. Thin volumes take the risk:
    they are neither refused nor counted.

    :raises UsageError: it does not fit.
    """
    keys = claiming(before, after, change)
    firm = [volume for volume in after.volumes() if volume.backend == "file" and not volume.thin]
    changed = {volume.name for volume in firm if volume.key in keys}
    for space in file_systems(firm) if changed else ():
        mine = [name for name in space.volumes if name in changed]
        if not mine or not space.short:
            continue
        volume = next(volume for volume in firm if volume.name == mine[0])
        if space.promised == volume.size:
            text = f"{format_size(volume.size)} is more than the {approximate(space.free)} free on the {space.where}"
        elif len(space.volumes) == 1:
            text = (
                f"{approximate(space.promised)} of it are not written yet, more than the {approximate(space.free)} "
                f"free on the {space.where}"
            )
        else:
            text = (
                f"with it, {approximate(space.promised)} would be promised to {len(space.volumes)} volumes on the "
                f"{space.where} and not written yet, and {approximate(space.free)} are free"
            )
        raise UsageError(f"volume {volume.name}: {text}; free some, or pass --thin to promise it all the same")
