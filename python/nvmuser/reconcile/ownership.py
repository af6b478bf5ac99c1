"""What of SPDK's objects is ours, which of our volumes each bdev is, and what is foreign. Pure look-ups.

Owns the rule: ours is what bears our identity, or lies on what does. Nothing here decides what to do about it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Pool, Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual, ActualNamespace, Bdev, Lvstore, Subsystem


def in_our_place(transport: str, address: str, directory: Path) -> bool:
    """Is a listener where those of our controllers are, as `directory` is, under its present name or another?"""
    return transport == "VFIOUSER" and os.path.dirname(address) == os.path.dirname(directory)


class Ownership:
    """Compares what is recorded (wanted or being deleted) with what SPDK has."""

    def __init__(self, desired: Desired, actual: Actual) -> None:
        self._desired = desired
        self._actual = actual
        recorded = [entry.object for entry in desired.entries.values()]
        self._by_bdev: dict[str, Volume] = {}
        for volume in recorded:
            if isinstance(volume, Volume) and (bdev := self.bdev(volume)):
                self._by_bdev[bdev.name] = volume
        self._by_nqn = {one.nqn: one for one in recorded if isinstance(one, Controller)}
        self._foreign_users = {
            namespace.bdev: subsystem.nqn
            for subsystem in actual.subsystems.values()
            if not self._owner(subsystem)
            for namespace in subsystem.namespaces
        }

    def bdev(self, volume: Volume) -> Bdev | None:
        """The bdev of a volume; None when there is none, or it is a stranger's."""
        found = backends.find(volume, self._desired, self._actual)
        return found if found and backends.is_ours(volume, found, self._desired, self._actual) else None

    def bdev_name(self, key: Key) -> str | None:
        """SPDK's name of a volume, by our key; None when it is not there, or no volume."""
        entry = self._desired.entries.get(key)
        found = self.bdev(entry.object) if entry and isinstance(entry.object, Volume) else None
        return found.name if found else None

    def volume(self, bdev: str) -> Volume | None:
        """The volume that a bdev of this name is; None when it is none of ours."""
        return self._by_bdev.get(bdev)

    def subsystem(self, controller: Controller) -> Subsystem | None:
        found = self._actual.subsystems.get(controller.nqn)
        return found if found and found.serial == controller.serial else None

    def lvstore(self, pool: Pool) -> Lvstore | None:
        """The lvstore of a pool; None when there is none of its name, or it is not on the pool's base."""
        store = self._actual.lvstores.get(pool.in_spdk)
        entry = self._desired.entries.get(Key("volume", pool.base))
        base = self.bdev(entry.object) if entry and isinstance(entry.object, Volume) else None
        return store if store and base and store.base in (base.name, *base.aliases) else None

    def strangers_in(self, store: Lvstore) -> list[str]:
        """Names of bdevs in an lvstore that are none of our volumes."""
        inside = (bdev.name for bdev in self._actual.bdevs.values() if bdev.lvstore == store.uuid)
        return [name for name in inside if name not in self._by_bdev]

    def foreign_user(self, bdev: str) -> str | None:
        """NQN of the subsystem that shows a bdev and is not ours."""
        return self._foreign_users.get(bdev)

    def matches(self, actual: ActualNamespace, wanted: Namespace | None) -> bool:
        """Does a namespace show the wanted volume, with its identifiers?"""
        shown = self._by_bdev.get(actual.bdev)
        if wanted is None or shown is None or shown.name != wanted.volume:
            return False
        entry = self._desired.entries.get(shown.key)
        return (
            entry is not None
            and not entry.deleting
            and (actual.uuid, actual.nguid.upper(), actual.eui64.upper()) == (shown.uuid, shown.nguid, shown.eui64)
        )

    def _owner(self, subsystem: Subsystem) -> Controller | None:
        controller = self._by_nqn.get(subsystem.nqn)
        return controller if controller and self.subsystem(controller) else None

    def foreign(self, directory: Callable[[str], Path]) -> list[str]:
        """What is not ours, in words.

        :param directory: where a controller's listener lives.
        """
        found = [f"bdev {name}" for name in self._foreign_bdevs()]
        for subsystem in self._actual.subsystems.values():
            controller = self._owner(subsystem)
            if controller is None:
                found.append(f"subsystem {subsystem.nqn}")
                continue
            found += [
                f"listener {address} of controller {controller.name}"
                for transport, address in subsystem.listeners
                if not in_our_place(transport, address, directory(controller.name))
            ]
            found += [
                f"namespace {namespace.nsid} of controller {controller.name} (bdev {namespace.bdev})"
                for namespace in subsystem.namespaces
                if namespace.bdev not in self._by_bdev
            ]
        return found

    def _foreign_bdevs(self) -> list[str]:
        """Without the namespaces of our remotes that no volume is, and what is in an lvstore that is not open."""
        stores = {store.uuid for store in self._actual.lvstores.values()}
        remotes = [remote.in_spdk for remote in self._desired.remotes()]
        return [
            bdev.name
            for bdev in self._actual.bdevs.values()
            if bdev.name not in self._by_bdev
            and not any(bdev.name.startswith(f"{remote}n") for remote in remotes)
            and (not bdev.lvstore or bdev.lvstore in stores)
        ]
