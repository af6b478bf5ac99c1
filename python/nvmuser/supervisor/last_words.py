"""What an SPDK process that ended while it started has written: the line that most likely says why.

Owns reading the end of a log that others write and put aside.
"""

from __future__ import annotations

import os
from pathlib import Path

_NO_MEMORY = "EAL: Cannot init memory"
"""Of DPDK (`rte_eal_init`): the pages that it was to take at its start were not there."""


class LastWords:
    """The lines of one process.

    :param start: of its log, where its own lines begin; a log that was put aside meanwhile is read from its beginning.
    """

    def __init__(self, log_file: Path, start: int) -> None:
        try:
            with log_file.open("rb") as file:
                file.seek(start if file.seek(0, os.SEEK_END) >= start else 0)
                self._lines = file.read().decode(errors="replace").splitlines()
        except OSError as error:
            self._lines = [f"its log cannot be read: {error.strerror}"]

    @property
    def error(self) -> str:
        """The last that looks like an error, else the last of all."""
        errors = [line for line in self._lines if "ERROR" in line or "EAL:" in line or "rror" in line]
        return (errors or self._lines or ["no output"])[-1].strip()

    @property
    def lacked_memory(self) -> bool:
        """Whether it ended because it got no memory."""
        return any(_NO_MEMORY in line for line in self._lines)
