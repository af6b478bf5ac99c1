"""What a check of `nvmuser doctor` is, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nvmuser.paths import StateDir

Level = Literal["ok", "failed", "warning", "optional"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    :param fix: a command, or what to do, when it is not `ok`.
    :param needed: without it guests cannot be served; only these decide the exit status.
    :param gain: what a machine that works already would win by the fix; only for what is not needed.
    """

    name: str
    ok: bool
    text: str
    fix: str = ""
    needed: bool = False
    gain: str = ""

    @property
    def level(self) -> Level:
        """`warning`: guests are served, and something may go wrong later. `optional`: nothing is wrong."""
        if self.ok:
            return "ok"
        if self.needed:
            return "failed"
        return "optional" if self.gain else "warning"

    def to_json(self) -> dict[str, Any]:
        facts = asdict(self)
        return {"name": facts.pop("name"), "level": self.level, "finding": facts.pop("text")} | facts


Check = Callable[[StateDir], Iterator[Finding]]
"""Looks and changes nothing; yields a finding for each thing that it looked at. Its docstring says what it checks.

It may raise NvmuserError or OSError: that is reported as a warning under the function's name.
"""
