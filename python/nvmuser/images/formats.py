"""Images that are not raw: qcow2, by way of QEMU's own qemu-img and a sparse raw file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Literal

from nvmuser.errors import SetupError, UsageError
from nvmuser.toolchain.qemu import find_qemu

Format = Literal["raw", "qcow2"]
FORMATS: tuple[Format, ...] = ("raw", "qcow2")


def format_of(path: Path) -> Format:
    """By its name, never by its content: a guest writes the content of a raw image, and a qcow2 can name other files
    of this machine."""
    return "qcow2" if path.suffix.lower() in (".qcow2", ".qcow") else "raw"


def check_alone(path: Path) -> None:
    """It is a qcow2 that has all of its data in itself.

    :raises UsageError: it is none, or names other files.
    """
    facts = json.loads(_run("info", "-f", "qcow2", "--output=json", str(path)))
    details = facts.get("format-specific", {}).get("data", {})
    if other := facts.get("full-backing-filename") or facts.get("backing-filename") or details.get("data-file"):
        raise UsageError(f"{path}: needs another file, {other}: `qemu-img convert -O qcow2` makes one image of both")


def to_raw(path: Path, raw: Path) -> None:
    """:raises UsageError: qemu-img refuses it."""
    check_alone(path)
    _run("convert", "-f", "qcow2", "-O", "raw", str(path), str(raw))


def from_raw(raw: Path, path: Path) -> None:
    """Make a qcow2, and compare it with what it was made from.

    :raises UsageError: qemu-img refuses it, or it is not the same.
    """
    _run("convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    _run("compare", "-f", "raw", "-F", "qcow2", str(raw), str(path))


def _run(*words: str) -> str:
    """qemu-img's output.

    :raises SetupError: there is no qemu-img. :raises UsageError: it failed.
    """
    argv = [*find_qemu().tool("qemu-img"), *words]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise SetupError(f"{argv[0]}: {error.strerror}") from error
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise UsageError(reason[-1] if reason else f"qemu-img {words[0]} failed")
    return done.stdout
