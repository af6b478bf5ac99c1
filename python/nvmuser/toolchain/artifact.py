"""Directories in the cache that are either finished or not there.

Owns how an artifact (an SPDK prefix, an unpacked QEMU, an appliance) is made: in a sibling, given its manifest, and
renamed. An interrupted set-up therefore never looks finished. It does not know what is in an artifact.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvmuser.errors import SetupError

_MANIFEST = "nvmuser.json"
PARTIAL = ".partial"
"""What the name of an unfinished artifact ends with."""


@contextmanager
def assembling(final: Path) -> Iterator[Path]:
    """Make `final` in a sibling directory; it appears, whole, when the block ends without an exception.

    The caller holds the set-up lock: a sibling that is already there is what a killed set-up left, and is removed.
    """
    staging = final.with_name(final.name + PARTIAL)
    remove(staging)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        remove(staging)
        raise
    remove(final)
    staging.rename(final)


def remove(tree: Path) -> None:
    """Remove a tree if it is there. Unpacked packages hold directories without write permission for their owner."""
    if not tree.exists():
        return
    for directory in (tree, *(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())):
        directory.chmod(0o755)
    shutil.rmtree(tree)


def forget_older(directory: Path, pattern: str, keep: int) -> None:
    """Remove all but the last `keep` artifacts of a pattern: another checkout on this cache may use those."""
    found = [path for path in directory.glob(pattern) if not path.name.endswith(PARTIAL)]
    for old in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[keep:]:
        remove(old)


def write_manifest(directory: Path, **facts: Any) -> None:
    """State what an artifact is; written last, before the rename."""
    (directory / _MANIFEST).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The facts in an artifact's manifest, or None when it is not there.

    :raises SetupError: it cannot be read.
    """
    try:
        text = (directory / _MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"{directory}: {error.strerror}: make it readable, or set NVMUSER_CACHE") from error
    facts = json.loads(text)
    assert isinstance(facts, dict)
    return facts


def digest(*parts: str | bytes) -> str:
    """A short name for inputs: twelve hexadecimal digits over all parts and their borders."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()[:12]
