"""What happened to the processes of a supervisor, for its log and for `nvmuser status`."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

_KEPT = 10


@dataclass
class Trouble:
    """Something that went wrong, once or repeatedly."""

    text: str
    last: float
    """Seconds since the epoch."""
    times: int = 1

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.last))
        return f"{when} {self.text}{f' ({self.times} times)' if self.times > 1 else ''}"


@dataclass
class History:
    """What happened to the targets of one supervisor. Times in seconds."""

    restarts: int = 0
    last_ending: str = ""
    startup: float | None = None
    """From the decision to start to the RPC socket's answer."""
    ready_after: float | None = None
    """From the death of the target before to everything wanted in this one."""
    troubles: list[Trouble] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Log it and keep it for `status`: the last ten that differ."""
        log.error("%s", text)
        known = next((trouble for trouble in self.troubles if trouble.text == text), None)
        times = known.times + 1 if known else 1
        others = [trouble for trouble in self.troubles if trouble is not known]
        self.troubles = [*others[1 - _KEPT :], Trouble(text, time.time(), times)]
