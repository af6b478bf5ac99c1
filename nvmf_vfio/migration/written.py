"""Which pages of a guest's memory are written while it migrates: by this process, and by the target.

Only the target knows what its I/O writes. It is asked to log that (*live*). Owns both logs, and what is to be assumed
when the target's is lost: that everything was written, and once more when what it had in flight has ended. Whether I/O
may go on without a log is `nvmf_vfio.migration.machine`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from nvmf_vfio.link import TargetLink
from nvmf_vfio.migration import target_log
from nvmf_vfio.migration.dirty import DirtyLog
from nvmf_vfio.protocol.messages import DmaUnmap
from nvmf_vfio.state.memory import GuestMemory


class Policy(StrEnum):
    """Who logs what a target writes while its guest migrates."""

    LIVE = "live"
    """The target, where it can."""
    FREEZE = "freeze"
    """Nobody: it may not write."""
    UNLOGGED = "unlogged"
    """Nobody, and it writes: the guest's memory is *wrong* afterwards. For what has to notice that."""


class Written:
    """The pages of one guest.

    :param serving: the connection to a target that serves the controller, whose driver has set it up, if there is one.
    """

    def __init__(self, memory: GuestMemory, serving: Callable[[], TargetLink | None], policy: Policy) -> None:
        self._memory = memory
        self._serving = serving
        self._policy = policy
        self._dirty = DirtyLog()
        self._live = False
        self._unknown = False
        memory.on_write = self._dirty.mark

    @property
    def is_on(self) -> bool:
        """Whether pages are logged."""
        return self._dirty.is_on

    @property
    def is_live(self) -> bool:
        """Whether the target logs what it writes."""
        return self._live

    @property
    def is_trusted(self) -> bool:
        """Whether the guest's memory, and so its queues, will be right where it goes on."""
        return self._policy is not Policy.UNLOGGED

    async def start(self) -> None:
        """Begin; afterwards `is_live` says whether the target logs too. If not, it may not write."""
        self._dirty.start()
        link = self._serving()
        if not link or self._policy is Policy.FREEZE or not target_log.can_report(self._memory.regions):
            return
        if self._policy is Policy.UNLOGGED or await target_log.start(link):
            self._live = link is self._serving()

    def start_anywhere(self) -> None:
        """Go on with a log that is lost: everything was written."""
        self._dirty.start()
        self._mark_all()

    def stop(self) -> None:
        """End, and forget everything."""
        if self._live and (link := self._serving()):
            target_log.stop(link)
        self._live = self._unknown = False
        self._dirty.stop()

    async def report(self, address: int, length: int) -> bytes:
        """The bits of a range, which are clear afterwards; see `DirtyLog.report`."""
        if self._live and self._policy is Policy.LIVE and (link := self._serving()):
            maps = self._memory.overlapping(address, address + length)
            if not await target_log.collect(link, maps, self._dirty):
                self.lost()
        return self._dirty.report(address, length)

    async def finish(self, link: TargetLink) -> bool:
        """End the I/O of a controller whose CPUs stand still, and collect the last of what it has written.

        :returns: False when the target was lost meanwhile.
        """
        ended = await target_log.end_io(link)
        if not ended:
            self.lost()
        elif self._policy is Policy.LIVE and not await target_log.collect(link, self._memory.regions, self._dirty):
            self._mark_all()
        self._live = False
        return ended

    def unmapped(self, request: DmaUnmap) -> None:
        """The guest takes memory back: what the target has logged of it is lost."""
        if self._live and request.flags & DmaUnmap.ALL:
            self._mark_all()
        elif self._live:
            self._dirty.mark(request.address, request.size)

    def lost(self) -> None:
        """The target is lost, and its log with it."""
        if self._live:
            self._live, self._unknown = False, True
            self._mark_all()

    def drained(self) -> None:
        """What a lost target had in flight has been written, or never will be."""
        if self._unknown:
            self._unknown = False
            self._mark_all()

    def _mark_all(self) -> None:
        for region in self._memory.regions:
            self._dirty.mark(region.map.address, region.map.size)
