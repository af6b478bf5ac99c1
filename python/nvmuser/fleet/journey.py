"""A guest on its way from one host of a fleet to another, as etcd has it: the record by which both know how far it is.

Pure. Who takes which step is `travel`'s and `nvmuser.guest.traveller`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from nvmuser.fleet.records import Record

ASKED = "asked"
"""Somebody wants it; the source looks whether it can."""
READY = "ready"
"""It can leave; the destination makes room."""
WAITING = "waiting"
"""A QEMU waits for it there; the source sends it."""
LEFT = "left"
"""It does not run at the source any more, and never will: the destination has it run."""
LOST = "lost"
"""Its QEMU at the source has ended at the last moment: the destination knows whether it has arrived."""
ARRIVED = "arrived"
"""It runs at the destination, whose the volumes are; the source forgets it."""
DONE = "done"
REFUSED = "refused"
"""It goes on at the source; the destination forgets it."""
RELEASED = "released"
"""The same, and the destination has nothing of it any more; the source sees that it goes on."""
FAILED = "failed"
"""The same, and that is done."""

ENDED = (DONE, FAILED)
AT_SOURCE, AT_DESTINATION = (ASKED, WAITING, ARRIVED, RELEASED), (READY, LEFT, LOST, REFUSED)
"""States of which this side takes the next step."""


@dataclass(frozen=True)
class Journey(Record):
    """:param controllers: what the guest has; at first one of them, by which it is found.
    :param machine, kind: what the same guest elsewhere has to have, and QEMU's name of its machine.
    :param uri: where the destination's QEMU waits.
    :param downtime: seconds for which it may be stopped.
    :param seconds, stopped, sent: how it went: seconds, and bytes.
    """

    source: str
    to: str
    controllers: tuple[str, ...]
    state: str = ASKED
    guest: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    uri: str = ""
    reason: str = ""
    bandwidth: int = 0
    downtime: float = 0.3
    seconds: float = 0.0
    stopped: float = 0.0
    sent: int = 0

    def side(self, host: str) -> str:
        """Whether a host has the next step: `source`, `destination`, or empty."""
        if self.source == host and self.state in AT_SOURCE:
            return "source"
        return "destination" if self.to == host and self.state in AT_DESTINATION else ""

    def is_expected(self, host: str) -> bool:
        """Whether what the guest needs may be at a host although it is still another's."""
        return self.to == host and self.state not in (ASKED, RELEASED, *ENDED)

    def refused(self, reason: str) -> Self:
        """The same, given up: the guest goes on where it is."""
        return replace(self, state=REFUSED, reason=reason)
