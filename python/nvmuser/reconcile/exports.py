"""Controllers as guests see them: the transport, subsystems, namespaces and listeners. Pure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import MAX_NAMESPACES, Controller, Namespace, Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual, ActualNamespace, Subsystem
from nvmuser.reconcile.calls import Needs
from nvmuser.reconcile.draft import Draft
from nvmuser.reconcile.ownership import Ownership, in_our_place
from nvmuser.rpc import methods

Ensure = Callable[[Key], tuple[int, ...] | None]
"""The calls after which an object is there; None when it cannot be yet, or at all."""


class Exports:
    """Adds the calls that make and repair controllers to a draft."""

    def __init__(
        self,
        desired: Desired,
        actual: Actual,
        ownership: Ownership,
        draft: Draft,
        directory: Callable[[str], Path],
    ) -> None:
        self._desired = desired
        self._actual = actual
        self._ownership = ownership
        self._draft = draft
        self._directory = directory
        self._transport: tuple[int, ...] = ()

    def plan_transport(self) -> None:
        """Listeners need it: to be called before the first `ensure`."""
        if not self._actual.transport and self._desired.controllers():
            key = Key("transport", "VFIOUSER")
            self._transport = (self._draft.add("create", methods.create_transport(), key),)

    def ensure(self, controller: Controller, ensure: Ensure) -> tuple[int, ...] | None:
        """The calls after which a controller is there; None when it cannot be.

        :param ensure: for its volumes.
        """
        draft, key = self._draft, controller.key
        present = self._actual.subsystems.get(controller.nqn)
        made: list[int] = []
        if present is None:
            request = methods.create_subsystem(controller.nqn, controller.serial, controller.cntlid, MAX_NAMESPACES)
            made.append(draft.add("create", request, key))
            present = Subsystem(controller.nqn, controller.serial, controller.cntlid, controller.cntlid)
        elif present.serial != controller.serial:
            draft.conflict(key, f"subsystem {controller.nqn} exists and is not ours (serial {present.serial})")
            return None
        elif (present.min_cntlid, present.max_cntlid) != (controller.cntlid, controller.cntlid):
            draft.conflict(key, f"its controller ids are {present.min_cntlid} to {present.max_cntlid}")
        if not present.any_host:
            made.append(draft.add("change", methods.allow_any_host(controller.nqn), key, made))
        made = self._namespaces(controller, present, made, ensure)
        directory = str(self._directory(controller.name))
        if ("VFIOUSER", directory) not in present.listeners:
            # Last, so that a guest finds everything there.
            request = methods.add_listener(controller.nqn, directory)
            made.append(draft.add("add", request, key, (*made, *self._transport), needs=Needs(directory=True)))
        for transport, address in present.listeners:
            if address != directory and in_our_place(transport, address, Path(directory)):
                # From before it was renamed.
                draft.add("delete", methods.remove_listener(controller.nqn, address), key, made)
        return tuple(made)

    def _namespaces(self, controller: Controller, present: Subsystem, made: list[int], ensure: Ensure) -> list[int]:
        there = {namespace.nsid: namespace for namespace in present.namespaces}
        added: list[int] = []
        for namespace in () if controller.away else controller.namespaces:
            volume = self._desired.get(Key("volume", namespace.volume))
            assert isinstance(volume, Volume)
            ready = ensure(volume.key)
            found = there.get(namespace.nsid)
            if found and self._ownership.matches(found, namespace):
                continue
            if ready is None:
                self._draft.waiting.add(controller.key)
                continue
            if found and not self._ownership.volume(found.bdev):
                self._draft.conflict(
                    controller.key, f"its namespace {namespace.nsid} shows bdev {found.bdev}, which is not ours"
                )
                continue
            added.append(self._add(controller, namespace, volume, [*made, *ready], found))
        return [*made, *added]

    def _add(
        self,
        controller: Controller,
        namespace: Namespace,
        volume: Volume,
        after: list[int],
        found: ActualNamespace | None,
    ) -> int:
        """:param found: what SPDK has under that number, and goes before."""
        after = [*after, *self._draft.released(self._ownership.bdev_name(volume.key))]
        if found:
            after += self._draft.released(found.bdev)
        bdev = backends.bdev_name(volume, self._desired)
        request = methods.add_namespace(
            controller.nqn, namespace.nsid, bdev, uuid=volume.uuid, nguid=volume.nguid, eui64=volume.eui64
        )
        return self._draft.add("add", request, controller.key, after, needs=Needs(events=True))
