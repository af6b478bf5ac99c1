"""Other installations that may have the same storage open, as far as one engine has to know of them.

Owns nothing that outlives the process: a fleet says it again, with each act that needs it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from nvmuser.model.objects import Cluster


@dataclass
class Peers:
    """Of one engine.

    :param predecessors: UUID of a volume → what the host identifiers of an installation have in common
        (`hostfs.reservation_keys.host_in`), for each whose reservation is taken when the volume is opened here.
    :param opening: is awaited with our address in a cluster, before an image there is opened by it. What it raises
        keeps everything there closed.
    """

    predecessors: dict[str, frozenset[str]] = field(default_factory=dict)
    opening: Callable[[Cluster, str], Awaitable[None]] | None = None
