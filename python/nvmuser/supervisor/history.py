"""What happened to the processes of a supervisor, for its log and for `nvmuser status`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

log = logging.getLogger(__name__)

_KEPT = 10


def stamped(text: str, when: float | None = None) -> str:
    """A text with its time, local, as ISO 8601 has it.

    :param when: seconds since the epoch; None: now.
    """
    moment = datetime.fromtimestamp(time.time() if when is None else when).astimezone()
    return f"{moment.isoformat(timespec='seconds')} {text}"


@dataclass
class Trouble:
    """Something that went wrong, once or repeatedly."""

    about: str
    """What it is about: `target`, `standby`, an object."""
    text: str
    last: float
    """Seconds since the epoch."""
    times: int = 1
    resolved: bool = False

    def __str__(self) -> str:
        return stamped(f"{self.text}{f' ({self.times} times)' if self.times > 1 else ''}", self.last)


@dataclass
class History:
    """What happened to the targets of one supervisor. Times in seconds."""

    restarts: int = 0
    last_ending: str = ""
    startup: float | None = None
    """From the decision to start to the RPC socket's answer."""
    ready_after: float | None = None
    """From the death of the target before to everything wanted in this one."""
    _known: list[Trouble] = field(default_factory=list)

    @property
    def troubles(self) -> list[Trouble]:
        """What is wrong still; the latest last."""
        return [trouble for trouble in self._known if not trouble.resolved]

    def note(self, about: str, text: str) -> None:
        """Log it and keep it for `status` until it is resolved: the last ten that differ."""
        log.error("%s", text)
        known = next((trouble for trouble in self._known if (trouble.about, trouble.text) == (about, text)), None)
        times = known.times + 1 if known else 1
        others = [trouble for trouble in self._known if trouble is not known]
        self._known = [*others[1 - _KEPT :], Trouble(about, text, time.time(), times)]

    def resolve(self, *about: str) -> None:
        """It is over. Should it come back, its occurrences are counted on."""
        for trouble in self._known:
            trouble.resolved |= trouble.about in about

    def hold_each(self, prefix: str, failing: Mapping[str, str]) -> None:
        """Everything that begins with `prefix` has been looked at: `failing` is all that is wrong, with the text."""
        others = {trouble.about for trouble in self._known if trouble.about.startswith(prefix)}
        self.resolve(*(others - failing.keys()))
        for about, text in failing.items():
            self.hold(about, [text])

    def hold(self, about: str, texts: Iterable[str]) -> None:
        """What is wrong right now, and all that is: each has the time at which it was seen first."""
        current = list(texts)
        for trouble in self._known:
            trouble.resolved |= trouble.about == about and trouble.text not in current
        shown = {trouble.text for trouble in self.troubles if trouble.about == about}
        for text in current:
            if text not in shown:
                self.note(about, text)
