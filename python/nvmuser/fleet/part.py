"""From a host's part of a fleet to the changes of its own store. Pure.

What etcd does not name is never deleted for that: an etcd that has lost its data must cost nobody theirs. What is to
go is said so by a record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from nvmuser.fleet.groups import sets
from nvmuser.fleet.records import KINDS, SHARED, Declared
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Cluster, Volume
from nvmuser.model.spec import Spec, difference


def changes(
    part: Mapping[Key, Declared],
    local: Desired,
    moved: Collection[Key] = (),
    *,
    lost: bool = False,
    made: Collection[str] = (),
) -> Iterator[Change]:
    """What makes a host's store agree with its part. Usually one; files that are to stay go in one of their own.

    :param moved: what is another host's by now, and is closed here; its data stays.
    :param lost: the storage has shut this host out of it: guests that use it lose nothing that they had.
    :param made: UUIDs of volumes whose images the fleet has made.
    """
    used = {below for one in part.values() if not one.deleting for below in one.object.depends_on}
    used |= {key for key, one in part.items() if key.kind == Cluster.kind and not one.deleting}
    here = {key: one for key, one in part.items() if not one.deleting and (key.kind not in SHARED or key in used)}
    wanted = tuple(as_carried_out(one.object, made) for one in here.values())
    main = difference(local, Spec(wanted, {}, {}), prune=False, wipe=False)
    gone = {key: one for key, one in part.items() if one.deleting and _is_there(local, key)}
    kept = tuple(key for key, one in gone.items() if one.keep_files)
    leaving = tuple(key for key in moved if _is_there(local, key))
    unused = _unused(local, used, {*gone, *leaving})
    deleted = (*(key for key in gone if key not in kept), *(() if leaving else unused))
    forced = any(part[key].force for key in {*main.keys, *gone} if key in part)
    main = replace(main, delete=deleted, wipe=bool(deleted), expect=(), force=forced)
    if kept:
        yield Change(delete=kept, keep_files=True, force=forced)
    if leaving:
        yield Change(delete=(*leaving, *unused), keep_files=True, force=lost)
    if main.keys:
        yield main


def pieces(change: Change, local: Desired) -> list[Change]:
    """The same change in parts that have nothing to do with each other, for when all of it at once is refused."""
    objects = {one.key: one for one in (*change.create, *change.update)}
    below: dict[Key, tuple[Key, ...]] = {key: one.depends_on for key, one in objects.items()}
    below |= {key: local.entries[key].object.depends_on for key in change.delete if key in local.entries}
    return [
        replace(
            change,
            create=tuple(one for one in change.create if one.key in keys),
            update=tuple(one for one in change.update if one.key in keys),
            delete=tuple(key for key in change.delete if key in keys),
        )
        for keys in sets(below, apart=())  # a remote that is new goes with what is on it
    ]


def closing(part: Mapping[Key, Declared], stale: Collection[Key], local: Desired) -> Change:
    """What closes some of a host's objects, with what goes with them, under guests too: the storage shuts them out."""
    below = {key: one.depends_on for one in local.wanted() if (key := one.key) in part}
    left = {key for keys in sets(below) if keys & set(stale) for key in keys if key.kind not in SHARED}
    return Change(delete=tuple(sorted(left)), keep_files=True, force=True)


def without(part: Mapping[Key, Declared], others: Collection[Key]) -> dict[Key, Declared]:
    """A part without some objects, and without what goes with them."""
    below = {key: one.object.depends_on for key, one in part.items()}
    left_out = {key for keys in sets(below) if keys & set(others) for key in keys}
    return {key: one for key, one in part.items() if key not in left_out}


def unknown(part: Mapping[Key, Declared], local: Desired) -> list[Key]:
    """What this host has, and the fleet does not."""
    return [one.key for one in local.wanted() if one.kind in KINDS and one.key not in part and one.kind not in SHARED]


def as_carried_out(one: AnyObject, made: Collection[str]) -> AnyObject:
    """Whose a file is, is found out where it is made; whose an image is, goes with it from host to host."""
    return replace(one, owned=one.backend == "rbd" and one.uuid in made) if isinstance(one, Volume) else one


def _is_there(local: Desired, key: Key) -> bool:
    return key in local.entries and not local.entries[key].deleting


def _unused(local: Desired, used: AbstractSet[Key], gone: Collection[Key]) -> tuple[Key, ...]:
    """What many hosts reach, and nothing here lies on any more: to leave it loses nothing."""
    users = {below for one in local.wanted() if one.key not in gone for below in one.depends_on}
    return tuple(one.key for one in local.wanted() if one.kind in SHARED and one.key not in users | used)
