"""By what a host can be shut out of a volume that it may have open: the storage's own means, one kind for each storage.

etcd only records who owns a volume; that the former owner cannot write any more is the storage's to say. Here is what
such a means must be able to do. A volume that has none can only be given up by its owner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nvmuser.model.objects import Volume

Recorded = Mapping[str, str]
"""A fence as etcd has it: its `kind`, and the address or key by which the storage knows who opened the volume."""


class Fence(Protocol):
    """One kind of storage's."""

    kind: str

    def applies(self, volume: Volume) -> bool:
        """Whether volumes of this sort can be fenced by it."""

    def choose(self, volume: Volume) -> Recorded:
        """By what this host will be known to the storage once it opens a volume. Recorded before it does so.

        :raises NvmuserError: that cannot be known now: the volume is not opened.
        """

    async def confirm(self, volume: Volume, recorded: Recorded) -> None:
        """Shut out whom a record names, and see for certain that it is so: no write of theirs arrives from now on.

        :raises NvmuserError: it is not certain. Then nothing moves.
        """


class Fences:
    """Those that a host knows."""

    def __init__(self, *fences: Fence) -> None:
        self._by_kind = {fence.kind: fence for fence in fences}

    def of(self, volume: Volume) -> Fence | None:
        """None where a volume cannot be fenced."""
        return next((fence for fence in self._by_kind.values() if fence.applies(volume)), None)

    def named(self, recorded: Recorded) -> Fence | None:
        """None where this host does not know that kind."""
        return self._by_kind.get(recorded.get("kind", ""))


def moves(volume: Volume) -> bool:
    """Whether a volume's data is where another host reaches it too."""
    return volume.backend == "remote"
