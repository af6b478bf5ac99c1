"""The journal of fences: as which client each of our processes is known to a cluster.

Owns the file. A line is on the disk before the process opens its first image, so that whatever dies, and however, its
successor can keep it out. Whether that has to be done is its callers' business.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Self

from nvmuser.errors import SetupError
from nvmuser.hostfs.process import start_time

_KEPT = 64
"""Of processes that have ended, the last ones: their locks have been broken long before."""


_WRITING = threading.Lock()
"""Of a state directory one process writes, but for several targets at a time."""


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True)
class Fence:
    """A process of ours, and its address in a cluster.

    :param cluster: by the name under which SPDK knows it.
    :param started: its start time, which with the pid and the boot names it for good.
    """

    cluster: str
    address: str
    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, cluster: str, address: str, pid: int) -> Self:
        """Of a process that lives."""
        return cls(cluster, address, pid, start_time(pid), _boot())

    @property
    def alive(self) -> bool:
        """Whether the process may still send anything: it has not ended, or is not reaped."""
        return self.boot == _boot() and self.started != 0 and start_time(self.pid) == self.started


class Journal:
    """Of one state directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Fence]:
        """:raises SetupError: it cannot be read, so that nothing of a predecessor's may be opened."""
        try:
            lines = json.loads(self._path.read_text(encoding="utf-8"))
            return [Fence(**line) for line in lines]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            raise SetupError(f"{self._path}: the journal of fences cannot be read: {error}") from error

    def addresses(self, cluster: str, *, alive: bool) -> list[str]:
        """Of our processes that live, or of those that have ended; the last one first."""
        return [one.address for one in reversed(self.read()) if one.cluster == cluster and one.alive == alive]

    def add(self, fence: Fence) -> None:
        """Record it; it is on the disk when this returns.

        :raises SetupError: it is not.
        """
        with _WRITING:
            known = self.read()
            ended = [one for one in known if not one.alive][-_KEPT:]
            self._write([*(one for one in known if one.alive or one in ended), fence])

    def _write(self, fences: Collection[Fence]) -> None:
        scratch = self._path.with_suffix(".new")
        try:
            with scratch.open("w", encoding="utf-8") as file:
                json.dump([asdict(one) for one in fences], file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self._path)
            _sync(self._path.parent)
        except OSError as error:
            raise SetupError(f"{self._path}: the journal of fences cannot be written: {error.strerror}") from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
