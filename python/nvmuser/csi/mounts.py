"""Bind mounts of controllers' sockets: made, found and taken away, by mount(8) and the kernel's own list."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from nvmuser.csi.refusal import Refused

_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\(\d{3})")


def mounted(controller: str) -> list[Path]:
    """Where the directory of a controller, or the socket in it, is mounted."""
    ends = (f"/guest/{controller}", f"/guest/{controller}/cntrl")
    return [place for root, place in _mounts() if root.endswith(ends)]


def _mounts() -> Iterator[tuple[str, Path]]:
    """What of a file system is mounted, and where (proc_pid_mountinfo(5))."""
    for line in _MOUNTS.read_text(encoding="utf-8").splitlines():
        root, place = line.split(" ")[3:5]
        yield root, Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), place))


def bind(source: Path, target: Path) -> None:
    """Make a directory or a file appear at `target`, which is made too.

    :raises Refused: that is not allowed, or what is there is something else.
    """
    try:
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch()
    except OSError as error:
        raise Refused("INTERNAL", f"{target}: {error.strerror}") from error
    _run("mount", "--bind", str(source), str(target))


def unbind(target: Path) -> None:
    """Take a mount and its place away, as often as it was mounted. A file that has something in it is not ours.

    :raises Refused: it is in use.
    """
    while any(place == target for _, place in _mounts()):
        _run("umount", str(target))
    try:
        if target.is_dir():
            target.rmdir()
        elif target.exists() and target.stat().st_size == 0:
            target.unlink()
    except OSError as error:
        raise Refused("INTERNAL", f"{target}: {error.strerror}") from error


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused("INTERNAL", done.stderr.strip() or f"{command[0]}: status {done.returncode}")
