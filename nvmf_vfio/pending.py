"""A guest's requests that have no reply yet, and the statistics of a guest.

Owns the descriptors of a request until they are remembered or released. It decides nothing: see `nvmf_vfio.session`.
"""

from __future__ import annotations

import bisect
import time
from dataclasses import dataclass, field
from typing import Any

from nvmf_vfio.keeper.fd_store import StoredFd
from nvmf_vfio.protocol.header import FROM_TARGET, Command, Header, ProtocolError
from nvmf_vfio.protocol.messages import RegionAccess, RegionWriteMulti, Request, decode_request
from nvmf_vfio.state.config_space import CONFIG
from nvmf_vfio.state.registers import BAR0, DOORBELLS

_MAY_BE_POSTED = frozenset({Command.REGION_WRITE, Command.REGION_WRITE_MULTI})
_ADMIN_DOORBELLS = (DOORBELLS, DOORBELLS + 4)


@dataclass(slots=True)
class Pending:
    """A guest's request that has no reply yet."""

    header: Header
    body: bytes
    command: Command
    request: Request
    stored: list[StoredFd]
    since: float
    sent: bool = False
    """Whether a reply is expected; the others wait for a target, because only a target can answer them."""
    remembered: bool = False
    """Whether it has taken effect already, before its reply."""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.body)


STALL_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds, up to each of which stalls are counted."""


@dataclass
class Stalls:
    """How long a guest waited at each recovery, since this endpoint serves it.

    :param counts: of those up to each bound and beyond the one before; the last: of the others.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(STALL_BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(STALL_BOUNDS, seconds)] += 1
        self.total += seconds

    def to_json(self) -> dict[str, Any]:
        return {"bounds": list(STALL_BOUNDS), "counts": self.counts, "total": self.total}


@dataclass
class Statistics:
    """Figures of a guest for `nvmuser status`. Times in seconds; `lost_at` is on the monotonic clock."""

    messages: int = 0
    recoveries: int = 0
    last_stall: float | None = None
    longest_stall: float | None = None
    lost_at: float | None = None

    def back(self) -> float | None:
        """Record that the guest's driver works again. Returns how long it waited; None where it had not stopped."""
        if self.lost_at is None:
            return None
        self.last_stall = time.monotonic() - self.lost_at
        self.longest_stall = max(self.longest_stall or 0.0, self.last_stall)
        self.recoveries += 1
        self.lost_at = None
        return self.last_stall


def decode(header: Header, body: bytes, *, versioned: bool) -> tuple[Command, Request]:
    """Decode a guest's request.

    :param versioned: whether the guest has sent VERSION before.
    :raises ProtocolError: the payload is not allowed, or the command not from a guest or at this point.
    """
    command, request = decode_request(header.command, body)
    if command in FROM_TARGET:
        raise ProtocolError(f"{command.name} from a client")
    if not header.wants_reply and command not in _MAY_BE_POSTED:
        raise ProtocolError(f"{command.name} without a reply")
    if not versioned and command is not Command.VERSION:
        raise ProtocolError(f"{command.name} before VERSION")
    return command, request


def is_admin_doorbell(request: Request) -> bool:
    """Whether this rings the admin queue's doorbells and nothing else."""
    writes = request.writes if isinstance(request, RegionWriteMulti) else (request,)
    return all(
        isinstance(write, RegionAccess) and write.data and write.region == BAR0 and write.offset in _ADMIN_DOORBELLS
        for write in writes
    )


def release(stored: list[StoredFd]) -> None:
    """Release descriptors that are not remembered, and empty the list."""
    while stored:
        stored.pop().release()


def changes_state(request: Request) -> bool:
    """Whether this request must be in the record. Most need not be: writes to doorbells of I/O queues."""
    if isinstance(request, RegionWriteMulti):
        return any(map(changes_state, request.writes))
    if isinstance(request, RegionAccess):
        return bool(request.data) and (request.region == CONFIG or request.offset < DOORBELLS + 8)
    return True
