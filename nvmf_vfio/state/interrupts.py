"""The interrupts that a guest has set up: the eventfds by which a target, and this process, signal them.

Owns those descriptors, by kind of interrupt and vector. When to signal is `nvmf_vfio.state.controller`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

from nvmf_vfio.keeper.fd_store import StoredFd
from nvmf_vfio.protocol.descriptors import Descriptor, is_eventfd
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import SetIrqs
from nvmf_vfio.state.memory import Refused

INTX, _MSI, _MSIX = range(3)
"""Kinds of interrupt (linux/vfio.h, VFIO_PCI_*_IRQ_INDEX)."""
_MAX_INTERRUPTS = 2048
"""PCI's limit for MSI-X; all kinds of interrupt of one guest count."""
_DESCRIPTORS = 8
"""Descriptors in one replayed DEVICE_SET_IRQS: the least that an implementation may be expected to take."""


class Interrupts:
    """Eventfds of one guest, by kind of interrupt and vector."""

    def __init__(self) -> None:
        self._vectors: dict[int, dict[int, StoredFd]] = {}

    def check(self, request: SetIrqs, descriptors: list[Descriptor]) -> None:
        """Check whether a request may be passed on and remembered.

        :raises Refused: it may not; with the errno of the reply.
        """
        if descriptors and len(descriptors) + self._stored_beside(request) > _MAX_INTERRUPTS:
            raise Refused(errno.ENOSPC, f"more than {_MAX_INTERRUPTS} interrupts")
        if descriptors and not request.flags & SetIrqs.TRIGGER:
            # SPDK's libvfio-user, as patched here, refuses it too; without a target no process would listen to it.
            raise Refused(errno.EINVAL, "an eventfd that masks or unmasks an interrupt")
        if descriptors and not (request.flags & SetIrqs.DATA_EVENTFD and len(descriptors) == request.count):
            raise Refused(errno.EINVAL, f"{len(descriptors)} descriptors for {request.count} vectors")
        if not all(map(is_eventfd, descriptors)):
            raise Refused(errno.EINVAL, "an interrupt's descriptor is not an eventfd")

    def _stored_beside(self, request: SetIrqs) -> int:
        """How many interrupts there will be beside those that the request sets."""
        new = range(request.start, request.start + request.count)
        replaced = sum(vector in new for vector in self._vectors.get(request.index, {}))
        return sum(map(len, self._vectors.values())) - replaced

    def remember(self, request: SetIrqs, stored: list[StoredFd]) -> None:
        """Remember a request that has taken effect. Takes over the descriptors that came with it."""
        if not request.flags & SetIrqs.TRIGGER or request.flags & SetIrqs.DATA_BOOL:
            for unused in stored:
                unused.release()
            return
        vectors = self._vectors.setdefault(request.index, {})
        gone = range(request.start, request.start + request.count)
        if request.flags & SetIrqs.DATA_NONE:
            if request.count:
                return
            gone = range(SetIrqs.MAX_VECTORS)
        for vector in [v for v in vectors if v in gone]:
            if (old := vectors.pop(vector)) not in stored:
                old.release()
        vectors.update(zip(range(request.start, request.start + len(stored)), stored, strict=True))

    def replay(self) -> Iterator[tuple[Command, bytes, list[Descriptor]]]:
        """Requests that set the interrupts up in a new target. The descriptors are copies for the caller."""
        for index, vectors in self._vectors.items():
            for run in _runs(sorted(vectors), _DESCRIPTORS):
                request = SetIrqs(SetIrqs.DATA_EVENTFD | SetIrqs.TRIGGER, index, run[0], len(run))
                copies = [vectors[vector].descriptor.duplicate() for vector in run]
                yield Command.DEVICE_SET_IRQS, request.pack(), copies

    @property
    def admin(self) -> tuple[int, StoredFd | None]:
        """The kind of interrupt that the guest has set up, and vector 0 of it; the admin queue has no other."""
        for index in (_MSIX, _MSI, INTX):
            if stored := self._vectors.get(index, {}).get(0):
                return index, stored
        return _MSIX, None

    @property
    def is_line(self) -> bool:
        """Whether the guest has INTx: a line, perhaps shared, that stays asserted until it accesses its controller."""
        return self.admin[1] is not None and self.admin[0] == INTX

    @property
    def is_msix(self) -> bool:
        """Whether the guest has set up MSI-X."""
        return bool(self._vectors.get(_MSIX))

    def signal_admin(self) -> None:
        """Signal the guest's admin interrupt."""
        _index, stored = self.admin
        if stored:
            _signal(stored.descriptor)

    def signal_all(self) -> None:
        """Signal every interrupt of the kind that is set up: one may have been lost."""
        index, _stored = self.admin
        for stored in self._vectors.get(index, {}).values():
            _signal(stored.descriptor)

    def fd_names(self) -> set[str]:
        """Names, in the fd store, of the descriptors that are remembered."""
        return {stored.name for vectors in self._vectors.values() for stored in vectors.values()}

    def to_json(self) -> list[Any]:
        """The interrupts for the session's record."""
        return [[index, v, stored.name] for index, vectors in self._vectors.items() for v, stored in vectors.items()]

    def load_json(self, document: list[Any], stored: dict[str, StoredFd]) -> None:
        """Take over what `to_json` returned; `stored` has the descriptors by name.

        :raises KeyError: a descriptor is missing.
        :raises ValueError: the document has another layout.
        """
        for index, vector, name in document:
            self._vectors.setdefault(index, {})[vector] = stored[name].share()


def _signal(eventfd: Descriptor) -> None:
    os.set_blocking(eventfd.fileno(), False)
    # A full counter means that the signal is pending anyway.
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(eventfd.fileno(), 1)


def _runs(vectors: list[int], longest: int) -> Iterator[list[int]]:
    """Runs of consecutive vectors, each of at most `longest`."""
    run: list[int] = []
    for vector in vectors:
        if run and (vector != run[-1] + 1 or len(run) == longest):
            yield run
            run = []
        run.append(vector)
    if run:
        yield run
