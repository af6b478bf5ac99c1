"""A temporary directory with a short path, for sockets and guests; logs of a guest that failed outlive it.

Owns the directory. An error of `nvmuser.guest` names the directory of its logs: that one is kept, and nothing else.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nvmuser.guest.qemu import Runtime


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Gone at the end, but for the directories of guests that failed."""
    root = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield root
    except Exception:
        _keep_logs(root)
        raise
    except BaseException:
        # Somebody does not want it any more: there is nothing to be looked into.
        shutil.rmtree(root, ignore_errors=True)
        raise
    shutil.rmtree(root, ignore_errors=True)


def _keep_logs(root: Path) -> None:
    log = Runtime(Path()).qemu_log.name
    kept = {path.parent for path in root.rglob(log)}
    # What is deepest comes first, so that a directory is empty when its turn comes.
    for path in sorted(root.rglob("*"), reverse=True):
        if kept.isdisjoint((path, *path.parents)):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    with contextlib.suppress(OSError):
        root.rmdir()
