"""What is wanted, as a whole: the objects, how they refer to each other, and what may not be together.

Pure. Owns the rules across objects; the store keeps them, the planner brings them about.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from nvmuser.errors import ConflictError, NotFoundError, UsageError
from nvmuser.model.backends import BACKENDS
from nvmuser.model.keys import Key
from nvmuser.model.named import NamedInSpdk, Object
from nvmuser.model.objects import AnyObject, Cluster, Controller, Pool, Remote, TargetSettings, Volume
from nvmuser.paths import DEFAULT_TARGET

_One = TypeVar("_One", bound=Object)


@dataclass(frozen=True)
class Entry:
    """One object as the store keeps it."""

    object: AnyObject
    provisioned: bool = False
    """What holds its data was made once: if that is missing, it is lost, and never made a second time (empty) in its
    place."""
    deleting: bool = False
    """A tombstone: still to be taken away from SPDK."""
    asked: bool = False
    """A target was asked to make what holds its data, so that it may be there although nobody could record it."""


def closed(objects: Iterable[AnyObject]) -> frozenset[Key]:
    """Keys of the volumes that belong to another host, by the controllers among some objects."""
    away = (one for one in objects if isinstance(one, Controller) and one.away)
    return frozenset(key for controller in away for key in controller.depends_on)


@dataclass(frozen=True)
class Desired:
    """Everything in the store, by key."""

    entries: Mapping[Key, Entry] = field(default_factory=dict)

    def get(self, key: Key) -> AnyObject:
        """:raises NotFoundError: nothing wanted bears it."""
        entry = self.entries.get(key)
        if entry is None or entry.deleting:
            raise NotFoundError(f"{key.words}: no such {key.kind}")
        return entry.object

    @functools.cached_property
    def _wanted(self) -> tuple[AnyObject, ...]:
        return tuple(entry.object for entry in self.entries.values() if not entry.deleting)

    @functools.cached_property
    def _by_kind(self) -> Mapping[str, list[AnyObject]]:
        """Of what is wanted."""
        found: dict[str, list[AnyObject]] = {}
        for one in self._wanted:
            found.setdefault(one.kind, []).append(one)
        return found

    def _of(self, kind: type[_One]) -> list[_One]:
        return [*cast(list[_One], self._by_kind.get(kind.kind, []))]

    def wanted(self) -> list[AnyObject]:
        return [*self._wanted]

    def deleted(self) -> list[AnyObject]:
        return [entry.object for entry in self.entries.values() if entry.deleting]

    def volumes(self) -> list[Volume]:
        return self._of(Volume)

    def controllers(self) -> list[Controller]:
        return self._of(Controller)

    def controller(self, name: str) -> Controller:
        """:raises NotFoundError: there is no such controller."""
        one = self.get(Key("controller", name))
        assert isinstance(one, Controller)
        return one

    def pools(self) -> list[Pool]:
        return self._of(Pool)

    def remotes(self) -> list[Remote]:
        return self._of(Remote)

    def clusters(self) -> list[Cluster]:
        return self._of(Cluster)

    def cluster_of(self, volume: Volume) -> Cluster:
        """Also of one that is being deleted, as its cluster may be."""
        one = self.entries[Key(Cluster.kind, volume.cluster)].object
        assert isinstance(one, Cluster)
        return one

    def targets(self) -> list[TargetSettings]:
        """Those that are declared: the default one need not be among them."""
        return self._of(TargetSettings)

    def target(self, name: str = DEFAULT_TARGET) -> TargetSettings:
        """How a target is to be run; the defaults where nothing is declared.

        :raises NotFoundError: there is no such target.
        """
        key = Key(TargetSettings.kind, name)
        if name == DEFAULT_TARGET and key not in {one.key for one in self.targets()}:
            return TargetSettings()
        one = self.get(key)
        assert isinstance(one, TargetSettings)
        return one

    @functools.cached_property
    def closed(self) -> frozenset[Key]:
        """Keys of the volumes that belong to another host: nothing here may open them."""
        return closed(self.controllers())

    def users(self, key: Key) -> list[str]:
        """What lies on it or shows it, in words: `controller a`."""
        return self._users.get(key, [])

    @functools.cached_property
    def _users(self) -> dict[Key, list[str]]:
        found: dict[Key, list[str]] = {}
        for wanted in self.wanted():
            target = [Key(TargetSettings.kind, wanted.target)] if isinstance(wanted, Controller) else []
            for key in dict.fromkeys((*wanted.depends_on, *target)):
                found.setdefault(key, []).append(wanted.key.words)
        return found

    def check(self) -> None:
        """Check the rules across objects.

        :raises NotFoundError: an object refers to one that there is not.
        :raises ConflictError: two objects need the same thing.
        :raises UsageError: an object lies on itself, or on volatile data without being declared volatile.
        """
        wanted = self.wanted()
        keys = {one.key for one in wanted}
        for one in wanted:
            for key in one.depends_on:
                if key not in keys:
                    raise NotFoundError(f"{one.key.words}: there is no {key.words}")
        self._check_users(wanted)
        self._check_unique()
        self._check_cycles()
        self._check_volatile()

    def _check_users(self, wanted: Iterable[AnyObject]) -> None:
        """SPDK claims a bdev for one user; snapshots, pools and remotes have many."""
        taken: dict[Key, AnyObject] = {}
        for one in wanted:
            for key in one.depends_on:
                if key.kind != "volume" or (isinstance(one, Volume) and (one.snapshot_of or one.clone_of)):
                    continue
                if key in taken:
                    raise ConflictError(
                        f"{key.words}: in use by {taken[key].key.words}, so not free for {one.key.words}"
                    )
                taken[key] = one

    def check_served(self, target: TargetSettings) -> None:
        """Check what one target serves, which this is.

        :raises ConflictError: it does not go with how the target is run.
        """
        self._check_count(target)
        self._check_interrupts(target)

    def _check_count(self, target: TargetSettings) -> None:
        count, most = len(self.controllers()), target.max_controllers
        if count > most:
            raise ConflictError(
                f"{count} controllers, and the {target.subject} is to have {most} at most: raise max_controllers (of "
                "`target:` in a specification, then `nvmuser target restart`; or `nvmuser target start "
                "--max-controllers`)"
            )

    def _check_unique(self) -> None:
        controllers, volumes = self.controllers(), self.volumes()
        for what, values in (
            ("NQN", [(controller.nqn, controller.key) for controller in controllers]),
            ("serial number", [(controller.serial, controller.key) for controller in controllers]),
            ("path", [(volume.path, volume.key) for volume in volumes]),
            ("namespace", [(_of_remote(volume), volume.key) for volume in volumes]),
            ("image", [(_of_cluster(volume), volume.key) for volume in volumes]),
            ("UUID", [(volume.uuid, volume.key) for volume in volumes]),
            *(("spdk_name", [(one.in_spdk, one.key) for one in group]) for group in self._in_spdk()),
        ):
            first: dict[str, Key] = {}
            for value, key in values:
                if value and value in first:
                    raise ConflictError(f"{key.words}: its {what}, {value}, is {first[value].words}'s already")
                first[value] = key

    def _in_spdk(self) -> Iterable[Sequence[NamedInSpdk]]:
        """What has to differ in its name there."""
        yield self.pools()
        yield self.remotes()
        yield self.clusters()
        pools: dict[str, list[Volume]] = {}
        for volume in self.volumes():
            pools.setdefault(volume.pool, []).append(volume)
        yield from pools.values()

    def _check_cycles(self) -> None:
        done: set[Key] = set()

        def visit(key: Key, above: tuple[Key, ...]) -> None:
            if key in above:
                raise UsageError(f"{key.words}: lies on itself, through {', '.join(key.words for key in above)}")
            if key not in done:
                for below in self.get(key).depends_on:
                    visit(below, (*above, key))
                done.add(key)

        for wanted in self.wanted():
            visit(wanted.key, ())

    def _check_volatile(self) -> None:
        """What lies on volatile data has to be declared volatile."""
        for volume in self.volumes():
            lying_on = [self.get(key) for key in volume.depends_on if key.kind == "volume"]
            for pool in [self.get(key) for key in volume.depends_on if key.kind == "pool"]:
                lying_on += [self.get(key) for key in pool.depends_on]
            for below in lying_on:
                if isinstance(below, Volume) and below.volatile and not volume.volatile:
                    raise UsageError(
                        f"volume {volume.name}: lies on volume {below.name}, whose data dies with the target; "
                        "pass --volatile to accept that"
                    )

    def check_new(self, volume: Volume) -> None:
        """Asked when it is declared: what a store holds since long ago stays.

        :raises UsageError: it is declared volatile, and nothing of it is.
        """
        below = [key for key in volume.depends_on if key.kind != "remote"]
        below += [key for pool in below if pool.kind == "pool" for key in self.get(pool).depends_on]
        lying_on = [self.get(key) for key in below]
        dies = BACKENDS[volume.backend].volatile or any(isinstance(b, Volume) and b.volatile for b in lying_on)
        if volume.volatile and not dies:
            raise UsageError(
                f"volume {volume.name}: volatile (--volatile) is for data that dies with the target, and this does "
                "not: leave it out"
            )

    def _check_interrupts(self, target: TargetSettings) -> None:
        """In interrupt mode, whatever needs a poller would keep a core busy, or not be there at all."""
        if target.profile != "eco":
            return
        polling = {f"remote {remote.name}" for remote in self.remotes()}
        below = [key for controller in self.controllers() for key in controller.depends_on]
        seen: set[Key] = set()
        while below:
            one = self.get(key := below.pop())
            if key not in seen and isinstance(one, Volume) and not BACKENDS[one.backend].interrupts:
                polling.add(f"volume {one.name} ({one.backend})")
            below += [] if key in seen else one.depends_on
            seen.add(key)
        if polling:
            raise ConflictError(
                f"{target.subject}: the profile eco has no pollers, and these need one: {', '.join(sorted(polling))}; "
                "take the profile balanced or throughput, or other volumes"
            )

    def surviving(self, controller: Controller) -> bool:
        """Does every volume of it keep its data when the target dies?"""
        volumes = [self.get(key) for key in controller.depends_on]
        return all(isinstance(volume, Volume) and not volume.volatile for volume in volumes)

    def check_surviving(self, controller: Controller) -> None:
        """:raises UsageError: a volume of it would die with the target, and that has not been
        accepted."""
        for one in map(self.get, controller.depends_on):
            if isinstance(one, Volume) and one.volatile and not controller.volatile:
                raise UsageError(
                    f"controller {controller.name}: the data of volume {one.name} dies with the target, so that no "
                    "guest survives it; take a file volume, or pass --volatile to accept that"
                )


def _of_remote(volume: Volume) -> str:
    """The namespace that it is of a remote, in words; empty for other volumes. SPDK has one bdev for each."""
    return f"{volume.remote_nsid} of remote {volume.remote}" if volume.remote else ""


def _of_cluster(volume: Volume) -> str:
    """The image or snapshot that it is, in words; empty for other volumes. Of each there is one writer."""
    if not volume.cluster or not volume.image:
        return ""
    snapshot = f"@{volume.in_spdk}" if volume.snapshot_of else ""
    return f"{volume.pool_name}/{volume.image}{snapshot} of cluster {volume.cluster}"
