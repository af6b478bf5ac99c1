"""What memory a process takes."""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, shared memory included (proc_pid_statm(5)).

    :raises ProcessLookupError: there is none.
    """
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
