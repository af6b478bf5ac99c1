"""From a change that a person wants to the records that it writes: where things come to be, their identities, and all
rules that one host's change has to keep too. Pure: what only a machine can know (files, room), its host says later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nvmuser.errors import ConflictError, NotFoundError, StaleError, UsageError
from nvmuser.fleet.placement import place
from nvmuser.fleet.records import SHARED, Declared, as_recorded
from nvmuser.fleet.view import View, as_desired
from nvmuser.model.change import Change, next_desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, TargetSettings, Volume
from nvmuser.model.where import Where


@dataclass(frozen=True)
class Proposal:
    """Records to write, and how they were.

    :param expect: objects that were looked at → revision.
    :param hosts: those that have something to do.
    """

    before: dict[Key, Declared | None] = field(default_factory=dict)
    after: dict[Key, Declared | None] = field(default_factory=dict)
    expect: dict[Key, int] = field(default_factory=dict)
    hosts: frozenset[str] = frozenset()


def propose(view: View, change: Change, wheres: Mapping[Key, Where], default: str) -> Proposal:
    """What a change comes to.

    :param wheres: what is said of where objects are to be.
    :param default: the host of what says nothing; empty: any.
    :raises NvmuserError: it is not possible; the message has the reason.
    """
    for key in change.keys:
        if key.kind == TargetSettings.kind:
            raise UsageError(f"{key.words}: how targets are run is each host's own: leave it out, and say it there")
    updated = {one.key: as_recorded(one, _object(view, one.key)) for one in change.update}
    expected = tuple(as_recorded(one, _object(view, one.key)) for one in change.expect)
    new = {one.key: as_recorded(one) for one in change.create}
    _check_moves(view, wheres, new)
    _check_new(view, new)
    hosts = place(view, new, updated, wheres, default)
    shares = _shares(view, change, new, updated, hosts)
    after: dict[Key, Declared | None] = {}
    for host, keys in shares.items():
        after |= _after(view, host, keys, replace(change, expect=expected), new, updated, hosts)
    _say_failover(view, wheres, after)
    before: dict[Key, Declared | None] = {key: view.objects.get(key) for key in {*change.keys, *after}}
    for key in change.delete:
        if key not in after:
            after[key] = None
            _check_unused(view, key, change)
    mentioned = change.keys | after.keys()
    below = {key for one in (*new.values(), *updated.values()) for key in one.depends_on}
    expect = {key: view.revision_of(key) for key in mentioned | below if key not in new or key in mentioned}
    return Proposal(before, after, expect, frozenset(filter(None, shares)))


def _say_failover(view: View, wheres: Mapping[Key, Where], after: dict[Key, Declared | None]) -> None:
    """What is said of controllers, and what was said before of those that are changed otherwise."""
    for key, where in wheres.items():
        if where.failover and (record := after.get(key) or view.objects.get(key)):
            said = replace(record, failover=where.failover if where.failover == "auto" else "")
            if key in after or said != record:
                after[key] = said
    for key, record in after.items():
        was = view.objects.get(key)
        if record and was and was.failover and not (key in wheres and wheres[key].failover):
            after[key] = replace(record, failover=was.failover)


def _object(view: View, key: Key) -> AnyObject | None:
    return view.objects[key].object if key in view.objects else None


def _check_moves(view: View, wheres: Mapping[Key, Where], new: Mapping[Key, AnyObject]) -> None:
    for key, where in wheres.items():
        host = view.objects[key].host if key in view.objects and key not in new else ""
        if host and where.host and where.host != host:
            raise ConflictError(
                f"{key.words}: is on host {host}; `nvmuser fleet move` moves controllers, and what they show with them"
            )


def _check_new(view: View, new: Mapping[Key, AnyObject]) -> None:
    """Names are the whole fleet's."""
    for key in new:
        if (there := view.objects.get(key)) is None:
            continue
        on = f" on host {there.host}" if there.host else ""
        if there.deleting:
            raise ConflictError(f"{key.words}: its deletion{on} is not finished yet")
        raise ConflictError(f"{key.words}: exists already{on}; choose another name")


def _check_unused(view: View, key: Key, change: Change) -> None:
    if key not in view.objects:
        raise NotFoundError(f"{key.words}: no such {key.kind}")
    users = [
        other.words
        for other, declared in view.objects.items()
        if key in declared.object.depends_on and other not in change.delete
    ]
    if users:
        raise ConflictError(f"{key.words}: in use by {', '.join(users)}")


def _shares(
    view: View,
    change: Change,
    new: Mapping[Key, AnyObject],
    updated: Mapping[Key, AnyObject],
    hosts: Mapping[Key, str],
) -> dict[str, set[Key]]:
    """Host → which of the change's keys it has to do with. Remotes are with those that use them."""
    shares: dict[str, set[Key]] = {}
    for key in change.keys:
        if key in hosts:
            host = hosts[key]
        elif key in view.objects:
            host = view.objects[key].host
        else:
            raise NotFoundError(f"{key.words}: no such {key.kind}")
        if host:
            shares.setdefault(host, set()).add(key)
        elif key in updated:
            for other in _users(view, key):
                shares.setdefault(other, set()).add(key)
        elif key in new:
            shares.setdefault("", set()).add(key)
    return shares


def _users(view: View, remote: Key) -> set[str]:
    """Hosts that have something on a remote; none: nobody's."""
    found = {one.host for one in view.objects.values() if remote in one.object.depends_on}
    return found or {""}


def _after(
    view: View,
    host: str,
    keys: set[Key],
    change: Change,
    new: Mapping[Key, AnyObject],
    updated: Mapping[Key, AnyObject],
    hosts: Mapping[Key, str],
) -> dict[Key, Declared | None]:
    """The records of one host's share, by the rules that its own store has."""
    created = [new[key] for key in new if key in keys]
    altered = [updated[key] for key in updated if key in keys]
    before = dict(view.part(host)) if host else {key: view.objects[key] for key in keys if key in view.objects}
    borrowed = [
        below for one in (*created, *altered) for below in one.depends_on if below.kind in SHARED and below not in keys
    ]
    before |= {key: view.objects[key] for key in borrowed if key in view.objects}
    lent = [new[key] for key in borrowed if key in new]
    share = Change(
        tuple((*created, *lent)),
        tuple(altered),
        tuple(key for key in change.delete if key in keys),
        change.wipe,
        tuple(one for one in change.expect if one.key in before),
        keep_files=change.keep_files,
    )
    after = next_desired(as_desired(before), share, _complete)
    for one in altered:
        if one.key not in before:
            raise StaleError(f"{one.key.words}: somebody else has just changed it; look again")
    found: dict[Key, Declared | None] = {}
    for key in keys:
        entry = after.entries[key]
        record = Declared.of(entry.object, hosts.get(key, view.objects[key].host if key in view.objects else ""))
        if entry.deleting:
            record = replace(record, deleting=True, wipe=change.wipe, keep_files=change.keep_files)
        found[key] = replace(record, force=change.force and key not in new)
    return found


def _complete(volume: Volume) -> Volume:
    """Whether its file or image is ours, by which the rules of deletion go, is decided by what is declared."""
    return replace(volume, owned=(volume.backend == "file" and not volume.path) or volume.create)
