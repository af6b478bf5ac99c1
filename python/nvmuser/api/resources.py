"""The collections of the API: which objects each has, and how one is shown: what is declared of it, and how it fares.

Pure, but for the sizes of files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from nvmuser.api.host import Host, Sample
from nvmuser.errors import NotFoundError
from nvmuser.model.desired import Desired
from nvmuser.model.identity import device_in_guest
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Pool, Remote, TargetSettings, Volume
from nvmuser.model.spec import SECTIONS, written
from nvmuser.reconcile import backends, space


@dataclass(frozen=True)
class Collection:
    """:param name: in paths, which is the section of a specification.
    :param role: that changes in it need.
    """

    name: str
    role: str = "operator"

    @property
    def kind(self) -> str:
        return SECTIONS[self.name]

    @property
    def singular(self) -> str:
        return self.name.removesuffix("s")

    def has(self, one: AnyObject) -> bool:
        """Whether an object is in it: snapshots are volumes that are listed by themselves."""
        if one.kind != self.kind:
            return False
        return not isinstance(one, Volume) or bool(one.snapshot_of) == (self.name == "snapshots")

    def names(self, desired: Desired) -> list[str]:
        found = [one.name for one in desired.wanted() if self.has(one)]
        if self.kind == TargetSettings.kind:
            found = sorted({*found, TargetSettings().name})
        return found

    def get(self, desired: Desired, name: str) -> AnyObject:
        """:raises NotFoundError: there is none of this name in it."""
        if self.kind == TargetSettings.kind:
            return desired.target(name)
        one = desired.get(Key(self.kind, name))
        if not self.has(one):
            raise NotFoundError(f"{self.singular} {name}: no such {self.singular}; there is a {one.kind} of this name")
        return one


COLLECTIONS = {
    one.name: one
    for one in (
        Collection("volumes"),
        Collection("snapshots"),
        Collection("pools"),
        Collection("remotes"),
        Collection("clusters"),
        Collection("controllers"),
        Collection("targets", role="admin"),
    )
}


def of(one: AnyObject) -> Collection:
    """The collection of an object."""
    return next(collection for collection in COLLECTIONS.values() if collection.has(one))


def revision(one: AnyObject) -> str:
    """Changes with what is declared, and only with it."""
    text = json.dumps({"kind": one.kind, **written(one)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shown(host: Host, desired: Desired, one: AnyObject, used_by: list[str]) -> dict[str, Any]:
    """An object in full.

    :param used_by: what lies on it or shows it, in words.
    """
    state = host.states.get(str(one.key), host.sample.otherwise)
    status: dict[str, Any] = {"state": state, "used_by": used_by}
    match one:
        case Volume():
            status |= _volume(one, desired, host.sample)
        case Controller():
            status |= _controller(one, desired, host)
        case Pool():
            status["space"] = _pool(one, desired, host.sample)
        case Remote():
            status["paths"] = [way for way in host.sample.drift.get("remotes", ()) if way["remote"] == one.name]
        case TargetSettings():
            status["process"] = host.sample.facts.get("targets", {}).get(one.name)
    return {"spec": written(one), "status": status, "revision": revision(one)}


def _volume(volume: Volume, desired: Desired, sample: Sample) -> dict[str, Any]:
    bdev = backends.find(volume, desired, sample.actual) if sample.actual else None
    mirrors = [mirror for mirror in sample.drift.get("mirrors", ()) if mirror["volume"] == volume.name]
    return {
        "size": volume.size or (bdev.size if bdev else None),
        "allocated": space.allocated_bytes(volume, bdev, sample.actual),
        "device": device_in_guest(volume),
        "mirror": mirrors[0] if mirrors else None,
    }


def _controller(controller: Controller, desired: Desired, host: Host) -> dict[str, Any]:
    guests = [one for one in host.sample.facts.get("guests", ()) if one["controller"] == controller.name]
    return {
        "socket": str(host.state.socket(controller.name)),
        "surviving": desired.surviving(controller),
        "away": controller.away,
        "guest": guests[0] if guests else None,
    }


def _pool(pool: Pool, desired: Desired, sample: Sample) -> dict[str, Any] | None:
    found = space.pools(desired, sample.actual).get(pool.name) if sample.actual else None
    return {key: asdict(found)[key] for key in ("total", "free", "promised")} if found else None
