"""How far an import or export has come: kept in the state directory until it is done, so that it can be resumed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nvmuser.errors import SetupError

Direction = Literal["import", "export"]


@dataclass(frozen=True)
class Copy:
    """What is copied: another file, or a file that has changed, is another copy."""

    direction: Direction
    volume: str
    """UUID."""
    file: str
    inode: int
    size: int
    changed_ns: int
    """Of an import's file; 0 for an export."""

    @classmethod
    def of(cls, direction: Direction, volume: str, path: Path, size: int) -> Copy:
        """:raises OSError: there is no such file."""
        info = path.stat()
        changed = info.st_mtime_ns if direction == "import" else 0
        return cls(direction, volume, str(path.absolute()), info.st_ino, size, changed)


class Checkpoint:
    """Of one copy.

    :param directory: where it is kept.
    """

    def __init__(self, directory: Path, copy: Copy) -> None:
        self._path = directory / f"{copy.direction}-{copy.volume}.json"
        self._copy = asdict(copy)

    def load(self) -> int:
        """Bytes that are done; 0 where there is none of this copy."""
        try:
            kept = json.loads(self._path.read_text())
            return int(kept["done"]) if kept["copy"] == self._copy else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def save(self, done: int) -> None:
        """Whole or not at all.

        :raises SetupError: it cannot be kept.
        """
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps({"copy": self._copy, "done": done}))
            os.replace(new, self._path)
        except OSError as error:
            raise SetupError(f"{self._path}: {error.strerror}") from error

    def forget(self) -> None:
        """The copy is done."""
        self._path.unlink(missing_ok=True)
