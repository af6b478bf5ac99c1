"""Volumes that are taken from a host that is not asked, by the host that is to have them.

The order is what matters: this host's fence is recorded beside the owner's; the storage shuts the owner out and lets
this host in; only then etcd says whose it is. Whatever dies in between, the next one shuts out everybody who may have
it open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from nvmuser.errors import FleetError, NvmuserError, StaleError
from nvmuser.fleet.etcd.client import Client
from nvmuser.fleet.fences import Fence, Fences
from nvmuser.fleet.ownership import Ownership
from nvmuser.fleet.records import Declared, Owner
from nvmuser.fleet.view import View
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Volume

_NO_TARGET = "no target runs on the host that is to take it: `nvmuser target start` there"

CarryOut = Callable[[list[Change]], Awaitable[tuple[dict[Key, str], bool]]]
"""Changes → problems by their objects, and whether a target is missing."""


@dataclass(frozen=True)
class Taking:
    """Of one host."""

    ownership: Ownership
    fences: Fences
    desired: Callable[[], Desired]
    """What this host's store has."""
    carry_out: CarryOut

    async def take(self, client: Client, view: View, part: Mapping[Key, Declared]) -> dict[Key, str]:
        """Take what this host's part says is to be taken, from the owner that it names. Returns why not, for what could
        not be.

        :raises FleetError: etcd does not answer. :raises StaleError: a record has changed since it was read; whether it
            still is to be taken is to be seen in what has come.
        """
        refused: dict[Key, str] = {}
        others = self.ownership.foreign(view, part)
        for key in sorted(others, key=lambda key: len(_below(part, key))):
            volume, owner = part[key].object, others[key]
            if part[key].seize != owner.epoch or not isinstance(volume, Volume):
                continue
            fence = self.fences.of(volume)
            if fence is None or not owner.fences:
                refused[key] = f"host {owner.host} may have it open, and cannot be shut out: there is no fence for it"
                continue
            if lacking := _below(part, key) & refused.keys():
                refused[key] = refused[min(lacking)]
                continue
            try:
                await self._take(client, view, part, volume, owner, fence)
            except (FleetError, StaleError):
                raise
            except NvmuserError as error:
                refused[key] = str(error)
            finally:
                fence.opened(volume)
        return refused

    async def _take(
        self,
        client: Client,
        view: View,
        part: Mapping[Key, Declared],
        volume: Volume,
        owner: Owner,
        fence: Fence,
    ) -> None:
        def find(key: Key) -> AnyObject | None:
            return part[key].object if key in part else None

        await self.ownership.candidate(client, view, volume)
        await fence.shut_out(volume, owner.fences, find)
        alone = {key: part[key] for key in _below(part, volume.key)}
        changes = self.ownership.changes(view, alone, self.desired())
        # Nothing else is done yet: what seems unused beside these alone may be used.
        opening = [replace(one, delete=(), wipe=False) for one in changes if one.create or one.update]
        problems, pending = await self.carry_out(opening)
        if problems or pending:
            raise NvmuserError("; ".join(dict.fromkeys(problems.values())) or _NO_TARGET)
        await self.ownership.taken(client, view, volume)


def _below(part: Mapping[Key, Declared], top: Key) -> set[Key]:
    """An object of a part, and all that it lies on."""
    found, left = set[Key](), [top]
    while left:
        if (key := left.pop()) in part and key not in found:
            found.add(key)
            left += part[key].object.depends_on
    return found
