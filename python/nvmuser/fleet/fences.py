"""By what a host can be shut out of a volume that it may have open: the storage's own means, one kind for each storage.

etcd only records who owns a volume; that the former owner cannot write any more is the storage's to say. Here is what
such a means must be able to do; `storage_fences` has those that there are. A volume that has none can only be given up
by its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Volume

Recorded = Mapping[str, str]
"""A fence as etcd has it: its `kind`, the `host` that it is of, and by what the storage knows who opened the volume."""
Find = Callable[[Key], AnyObject | None]


class Fence(Protocol):
    """One kind of storage's, on the host that is to have a volume."""

    kind: str

    def applies(self, volume: Volume) -> bool:
        """Whether volumes of this sort can be fenced by it."""

    def choose(self, volume: Volume) -> Recorded:
        """By what this host will be known to the storage once it opens a volume. Recorded before it does so.

        :raises NvmuserError: that cannot be known now: the volume is not opened.
        """

    async def shut_out(self, volume: Volume, recorded: Sequence[Recorded], find: Find) -> None:
        """Shut out everybody whom a record names, and see for certain that it is so: at the latest when the volume has
        been opened here, which is refused where it is not.

        :param find: what the volume lies on.
        :raises NvmuserError: it is not certain. Then nothing moves.
        """

    def opened(self, volume: Volume) -> None:
        """It has been opened here after that, or never will be."""


class Fences:
    """Those that a host knows."""

    def __init__(self, *fences: Fence) -> None:
        self._by_kind = {fence.kind: fence for fence in fences}

    def of(self, volume: Volume) -> Fence | None:
        """None where a volume cannot be fenced."""
        return next((fence for fence in self._by_kind.values() if fence.applies(volume)), None)


def moves(volume: Volume) -> bool:
    """Whether a volume's data is where another host reaches it too."""
    return volume.backend in ("remote", "rbd")


def is_owned(volume: Volume) -> bool:
    """Whether it matters who has a volume open: to what nobody writes, it does not."""
    return moves(volume) and not volume.snapshot_of
