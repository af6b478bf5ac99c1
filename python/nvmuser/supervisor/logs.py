"""The logs of the three processes: kept small, shown from their end, followed.

Owns the files under `log/` and the older ones beside them (`target.log.1` is the newest of these). Processes append to
a log for as long as they live and know nothing of this: so a log that has grown is copied and emptied (O_APPEND: the
next line goes to the new end). What is written between the two is lost; a process that outlives its supervisor could
not be asked to open another file, nor wait for a reader of a pipe.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from nvmuser.errors import NotFoundError, SetupError
from nvmuser.hostfs import permissions

LOGS = ("target", "endpoint", "supervisor")
_BLOCK = 64 << 10
_INTERVAL = 5.0
"""Seconds between looks at how large they are."""


@dataclass(frozen=True)
class Limits:
    """How much of each log is kept.

    :param size: bytes of the log, and of each older one.
    :param files: how many older ones.
    """

    size: int = 16 << 20
    files: int = 4


def rotate(path: Path, limits: Limits) -> bool:
    """Put a log aside that has grown beyond its size. True when it was.

    Without room for the copy it is emptied all the same: a full disk is no reason to fill it further.
    """
    try:
        if path.stat().st_size < limits.size:
            return False
        for number in range(limits.files, 0, -1):
            older = _older(path, number)
            if number == limits.files:
                older.unlink(missing_ok=True)
            elif older.exists():
                older.rename(_older(path, number + 1))
        if limits.files:
            _copy(path, _older(path, 1))
        os.truncate(path, 0)
    except OSError:
        return False
    return True


async def keep_small(directory: Path, limits: Limits) -> NoReturn:
    """Put the logs in a directory aside as they grow, for ever."""
    while True:
        for path in directory.glob("*.log"):
            await asyncio.to_thread(rotate, path, limits)
        await asyncio.sleep(_INTERVAL)


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _copy(path: Path, copy: Path) -> None:
    try:
        shutil.copyfile(path, copy)
    except OSError:
        copy.unlink(missing_ok=True)


def tail(path: Path, lines: int) -> tuple[list[str], int]:
    """The last lines of a log, of which only the end is read, and where it ends.

    :raises NotFoundError: there is none yet.
    :raises AccessError: this user may not read it.
    :raises SetupError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            end = start = file.seek(0, os.SEEK_END)
            text = b""
            while start and text.count(b"\n") <= lines:
                size = min(_BLOCK, start)
                start -= size
                file.seek(start)
                text = file.read(size) + text
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such log yet; `nvmuser target start` makes it") from None
    except PermissionError as error:
        raise permissions.denied(path) from error
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error
    return text.decode(errors="replace").splitlines()[-lines:], end


def follow(path: Path, offset: int, *, interval: float = 0.5) -> Iterator[str]:
    """What is appended to a log from `offset` on, for ever; also after it was put aside."""
    while True:
        try:
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < offset:
                    offset = 0
                file.seek(offset)
                text = file.read()
        except OSError:
            text = b""
        if text:
            offset += len(text)
            yield text.decode(errors="replace")
        else:
            time.sleep(interval)
