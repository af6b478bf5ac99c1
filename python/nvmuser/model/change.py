"""A change of what is wanted: what to declare, what to alter, what to take away. JSON both ways, so that it
can be sent.

Pure: computing the next `Desired` from the present one and a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from nvmuser.errors import ConflictError, StaleError, UsageError
from nvmuser.model import extent, identity, placement
from nvmuser.model.backends import BACKENDS
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import (
    AnyObject,
    Controller,
    Namespace,
    Pool,
    Remote,
    TargetSettings,
    Volume,
    object_from_json,
)
from nvmuser.model.sizes import format_size
from nvmuser.model.spdk_names import SpdkNames

DEFAULT = TargetSettings().key


@dataclass(frozen=True)
class Change:
    """Carried out as one: all of it or nothing."""

    create: tuple[AnyObject, ...] = ()
    update: tuple[AnyObject, ...] = ()
    """Whole objects that replace those of the same name. Identities that they leave empty stay."""
    delete: tuple[Key, ...] = ()
    wipe: bool = False
    """Data may be deleted along with what is deleted."""
    expect: tuple[AnyObject, ...] = ()
    """Expected current objects (optimistic locking): when one differs, nothing is done."""
    keep_files: bool = False
    """Files of volumes that are deleted stay, also those that we made."""
    force: bool = False
    """Guests that run may lose what they use."""

    def to_json(self) -> dict[str, Any]:
        return {
            "create": [declared.to_json() for declared in self.create],
            "update": [declared.to_json() for declared in self.update],
            "delete": list(map(str, self.delete)),
            "wipe": self.wipe,
            "keep_files": self.keep_files,
            "expect": [declared.to_json() for declared in self.expect],
            "force": self.force,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """:raises UsageError: it is not a change."""
        if unknown := set(data) - {"create", "update", "delete", "wipe", "keep_files", "expect", "force"}:
            raise UsageError(f"change: unknown field {unknown.pop()!r}")
        return cls(
            create=tuple(map(object_from_json, data.get("create", ()))),
            update=tuple(map(object_from_json, data.get("update", ()))),
            delete=tuple(Key.parse(str(key)) for key in data.get("delete", ())),
            wipe=bool(data.get("wipe", False)),
            keep_files=bool(data.get("keep_files", False)),
            expect=tuple(map(object_from_json, data.get("expect", ()))),
            force=bool(data.get("force", False)),
        )

    @property
    def keys(self) -> set[Key]:
        return {declared.key for declared in (*self.create, *self.update)} | set(self.delete)


def losses(desired: Desired, change: Change) -> dict[str, str]:
    """Which controllers a change takes something away from that a guest may use, and what, in words."""
    lost: dict[str, str] = {}
    for updated in change.update:
        if isinstance(updated, Controller) and updated.key in desired.entries:
            kept = {(namespace.nsid, namespace.volume) for namespace in _numbered(updated).namespaces}
            before = desired.controller(updated.name).namespaces
            gone = [namespace.volume for namespace in before if (namespace.nsid, namespace.volume) not in kept]
            if gone:
                lost[updated.name] = f"volume{'s' * (len(gone) > 1)} {', '.join(gone)}"
    return lost | {key.name: "the controller" for key in change.delete if key.kind == "controller"}


def next_desired(desired: Desired, change: Change, prepare: Callable[[Volume], Volume]) -> Desired:
    """What is wanted after `change`.

    :param prepare: completes a new volume with what only the machine knows: its path and its size.
    :raises ConflictError: it does not go with what is wanted already, or with an identity.
    :raises NotFoundError: it names an object that there is not.
    :raises UsageError: an object cannot be declared so, or data would be lost without consent.
    """
    for expected in change.expect:
        if _declared(desired.get(expected.key)) != _declared(expected):
            raise StaleError(f"{expected.key.words}: somebody else has just changed it; look again")
    _check_away(desired, change)
    entries = _after_deletions(desired, change)
    recorded = [entry.object for entry in entries.values()]
    known = (*recorded, *change.create)
    cntlids = identity.free_cntlids(declared for declared in known if isinstance(declared, Controller))
    names = SpdkNames(recorded, change.create)
    find = _finder(entries)
    for declared in _bottom_up(change.create):
        if present := entries.get(declared.key):
            if present.deleting:
                raise ConflictError(
                    f"{declared.key.words}: its deletion is not finished yet, which needs a target: "
                    "`nvmuser target start`, or see what is in its way with `nvmuser status`"
                )
            raise ConflictError(f"{declared.key.words}: exists already; choose another name")
        entries[declared.key] = Entry(_identified(names.named(declared), cntlids, prepare, find))
    for updated in change.update:
        before = desired.get(updated.key)
        entries[updated.key] = replace(entries[updated.key], object=_updated(before, updated, find))
    after = Desired(entries)
    for key in change.delete:
        if users := after.users(key):
            raise ConflictError(f"{key.words}: in use by {', '.join(users)}")
    after.check()
    placement.check(after)
    placement.check_moves(desired, after)
    for declared in change.create:
        if isinstance(one := after.get(declared.key), Volume):
            after.check_new(one)
    return after


def _after_deletions(desired: Desired, change: Change) -> dict[Key, Entry]:
    """Entries, those that go as tombstones."""
    entries = dict(desired.entries)
    for key in change.delete:
        if key == DEFAULT:
            raise UsageError(f"{key.words}: the default target is always there")
        going = _going(desired.get(key), change)
        entry = replace(desired.entries[key], object=going, deleting=True)
        _check_data_loss(entry, change.wipe)
        entries[key] = entry
    return entries


def _declared(one: AnyObject) -> AnyObject:
    """Without what the engine records by itself: that is nobody's change."""
    if isinstance(one, Controller):
        return replace(one, away=False)
    return replace(one, stale=()) if isinstance(one, Volume) else one


def _check_away(desired: Desired, change: Change) -> None:
    """A controller whose volumes are another host's goes with them, and the files stay; until then it stays as it is.

    :raises ConflictError: a volume of it would be opened here, or its data deleted.
    """
    updated = {one.key: one for one in change.update}
    for controller in desired.controllers():
        if not controller.away:
            continue
        mine = {controller.key, *controller.depends_on}
        after = updated.get(controller.key, controller)
        gone = mine & set(change.delete)
        if (gone and (gone != mine or not change.keep_files)) or after.depends_on != controller.depends_on:
            raise ConflictError(
                f"{controller.key.words}: its volumes belong to another host; `nvmuser controller release "
                f"{controller.name}` forgets them here, `nvmuser controller take-back {controller.name}` fetches them"
            )


def _finder(entries: Mapping[Key, Entry]) -> extent.Find:
    return lambda key: entry.object if (entry := entries.get(key)) else None


def _bottom_up(objects: Sequence[AnyObject]) -> Iterator[AnyObject]:
    """Each after what it lies on: a clone has the size of its snapshot."""
    by_key = {declared.key: declared for declared in objects}
    seen: set[int] = set()

    def visit(one: AnyObject) -> Iterator[AnyObject]:
        if id(one) not in seen:
            seen.add(id(one))
            for key in one.depends_on:
                if key in by_key:
                    yield from visit(by_key[key])
            yield one

    for declared in objects:
        yield from visit(declared)


def _going(one: AnyObject, change: Change) -> AnyObject:
    """What is being deleted; without its file or image where that is kept.

    :raises UsageError: a file is to stay of what has none.
    """
    has_none = one.kind in ("controller", "remote", "cluster") or (isinstance(one, Volume) and one.backend == "remote")
    if not change.keep_files or has_none:
        return one
    if not isinstance(one, Volume) or one.backend not in ("file", "rbd"):
        raise UsageError(f"{one.key.words}: it has no file that could be kept")
    return replace(one, owned=False)


def _check_data_loss(entry: Entry, wipe: bool) -> None:
    one = entry.object
    loses = isinstance(one, Volume) and (one.owned or BACKENDS[one.backend].erased)
    if loses and not wipe:
        raise UsageError(f"{one.key.words}: deleting it deletes its data; pass --yes to confirm")
    if one.kind == "pool" and not wipe:
        raise UsageError(f"{one.key.words}: deleting it erases the volume below; pass --yes to confirm")


def _identified(
    one: AnyObject, cntlids: Iterator[int], prepare: Callable[[Volume], Volume], find: extent.Find
) -> AnyObject:
    one.check_declared()
    if isinstance(one, Volume):
        return identity.identify_volume(prepare(extent.begun(one, find)))
    if isinstance(one, Controller):
        return identity.identify_controller(_numbered(one), cntlids)
    if isinstance(one, Pool):
        extent.check_pool(one, find)
    return one


def _numbered(controller: Controller) -> Controller:
    """Namespaces without a number get the lowest that are free."""
    used = {namespace.nsid for namespace in controller.namespaces}
    free = (number for number in range(1, len(controller.namespaces) + len(used) + 1) if number not in used)
    numbered = (replace(namespace, nsid=namespace.nsid or next(free)) for namespace in controller.namespaces)
    return replace(controller, namespaces=tuple(sorted(numbered, key=lambda one: one.nsid)))


_FIXED = {
    "volume": ("backend", "block_size", "path", "owned", "pool", "snapshot_of", "clone_of", "remote",
               "remote_nsid", "shared_ok", "cluster", "pool_name", "image", "base", "volatile"),
    "pool": ("base", "cluster_size"),
    "remote": ("nqn", "reconnect_s", "fail_after_s", "keep_alive_s"),
    "cluster": ("conf", "user", "keyring"),
    "controller": (),
    "target": (),
}  # fmt: skip
"""What cannot change after an object was declared."""


def _updated(before: AnyObject, after: AnyObject, find: extent.Find) -> AnyObject:
    for field in before.identity:
        mine, theirs = getattr(before, field), getattr(after, field)
        if theirs and theirs != mine:
            raise ConflictError(f"{before.key.words}: its {field} is {mine} for ever, not {theirs}")
    after = replace(after, **{field: getattr(before, field) for field in before.identity})
    for field in _FIXED[before.kind]:
        if getattr(before, field) != getattr(after, field):
            raise ConflictError(f"{before.key.words}: its {field} cannot change; make another {before.kind}")
    if isinstance(before, Remote) and isinstance(after, Remote):
        _check_keys(before, after)
    if isinstance(before, Volume) and isinstance(after, Volume) and after != before:
        after = extent.rounded(after, find) if after.size != before.size else after
        _check_size(before, after)
        if before.thin != after.thin and before.backend != "file":
            raise ConflictError(f"{before.key.words}: its thin cannot change; make another volume")
        _check_members(before, after)
        new = set(after.members) - set(before.members)
        after = replace(after, stale=tuple(name for name in after.members if name in {*before.stale, *new}))
    if after != before:
        after.check_declared()
    if isinstance(before, Controller) and isinstance(after, Controller):
        return _numbered(replace(after, away=before.away))
    return after


def _check_keys(before: Remote, after: Remote) -> None:
    """SPDK is told the files of a remote's keys when it is attached. It reads that for TLS then, the others at each
    connection."""
    for field in Remote.keys:
        was = getattr(before, field)
        if was == getattr(after, field):
            continue
        way_out = "delete the remote and what is on it, and create it again"
        if was:
            then = "then `nvmuser target restart`" if field == "psk" else "which is read at each connection"
            way_out = f"write the new key into {was}, {then}"
        raise ConflictError(f"{before.key.words}: its {field} cannot change while it is attached: {way_out}")


def _check_size(before: Volume, after: Volume) -> None:
    if after.size < before.size:
        raise ConflictError(
            f"{before.key.words}: cannot shrink from {format_size(before.size)} to {format_size(after.size)}; "
            "a guest would lose data"
        )
    if after.size > before.size and not BACKENDS[after.backend].grows:
        raise ConflictError(f"{before.key.words}: a {after.backend} volume cannot grow")


def _check_members(before: Volume, after: Volume) -> None:
    """Only a mirror's may change, while one with all of the data stays."""
    if before.members == after.members:
        return
    if before.backend != "raid1" or len(before.members) != len(after.members):
        raise ConflictError(f"{before.key.words}: its members cannot change; make another volume")
    if not set(before.members) & set(after.members) - set(before.stale):
        kept = " or ".join(member for member in before.members if member not in before.stale)
        raise ConflictError(f"{before.key.words}: the newest data is on {kept} alone, which has to stay a member")


def replace_member(mirror: Volume, old: str, new: str) -> Volume:
    """With `new` in the place of `old`.

    :raises ConflictError: `old` is none, or `new` is one already.
    """
    if old not in mirror.members:
        members = ", ".join(mirror.members) or "none"
        raise ConflictError(f"volume {mirror.name}: {old} is no member of it; its members: {members}")
    if new in mirror.members:
        raise ConflictError(f"volume {mirror.name}: {new} is a member of it already")
    return replace(mirror, members=tuple(new if member == old else member for member in mirror.members))


def attach(controller: Controller, volume: str, nsid: int = 0) -> Controller:
    """With one namespace more."""
    if any(namespace.volume == volume for namespace in controller.namespaces):
        raise ConflictError(f"volume {volume}: attached to controller {controller.name} already")
    return _numbered(replace(controller, namespaces=(*controller.namespaces, Namespace(volume, nsid))))


def detach(controller: Controller, volume: str) -> Controller:
    """With one namespace less.

    :raises ConflictError: there is none of this volume.
    """
    left = tuple(namespace for namespace in controller.namespaces if namespace.volume != volume)
    if len(left) == len(controller.namespaces):
        raise ConflictError(f"volume {volume}: not attached to controller {controller.name}")
    return replace(controller, namespaces=left)
