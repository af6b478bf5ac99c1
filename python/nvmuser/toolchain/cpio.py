"""Writes an initramfs: the `newc` cpio format, as the kernel's early-userspace/buffer-format.rst has it.

Owns the format only. Everything belongs to root and is dated 1970, so that equal input gives equal output.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_ALIGN = 4


def write_archive(root: Path, out: BinaryIO) -> None:
    """Write all that is below `root`, and /dev/console, without which init has no output."""
    number = 0
    for path in sorted(root.rglob("*")):
        number += 1
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            data = os.readlink(path).encode()
        elif stat.S_ISREG(info.st_mode):
            data = path.read_bytes()
        else:
            data = b""
        _entry(out, number, info.st_mode, str(path.relative_to(root)), data)
    _entry(out, number + 1, stat.S_IFDIR | 0o755, "dev", b"")
    _entry(out, number + 2, stat.S_IFCHR | 0o600, "dev/console", b"", device=(5, 1))
    _entry(out, 0, 0, "TRAILER!!!", b"")


def _entry(out: BinaryIO, number: int, mode: int, name: str, data: bytes, *, device: tuple[int, int] = (0, 0)) -> None:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # c_ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
    out.write(b"070701" + b"".join(b"%08X" % value for value in fields))
    out.write(encoded + bytes(-(6 + 8 * len(fields) + len(encoded)) % _ALIGN))
    out.write(data + bytes(-len(data) % _ALIGN))
