"""On which target each object is, where a host has several: with its controller, and without one on the default target.

Pure. Only controllers name a target; what lies below one is there with it, so that whatever hangs together (a pool and
its volumes, a mirror and its members) is on one target. Remotes and clusters alone may be attached on several. What is
being deleted is where it was, as far as that can be known; `nvmuser.reconcile.site` closes it wherever it finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from nvmuser.errors import ConflictError, NotFoundError
from nvmuser.model import cores
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Controller, Remote, TargetSettings, Volume
from nvmuser.paths import DEFAULT_TARGET

_SHARED = (Remote.kind, Cluster.kind)
UNBOUND = (*_SHARED, TargetSettings.kind)
"""Kinds of which nothing is tied to one target by what lies on it."""


@dataclass(frozen=True)
class Group:
    """What cannot be on different targets: it hangs together through the volumes of controllers."""

    keys: frozenset[Key]
    controllers: tuple[Controller, ...]
    """Those that are wanted."""


def groups(desired: Desired) -> list[Group]:
    """Everything but remotes and targets, in groups. A controller that is being deleted holds nothing together."""
    parent: dict[Key, Key] = {}

    def root(key: Key) -> Key:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = key = parent[above]
        return key

    placed = {key: entry for key, entry in desired.entries.items() if key.kind not in UNBOUND}
    for key, entry in placed.items():
        root(key)
        for below in () if _leaves(entry) else entry.object.depends_on:
            if below in placed:
                parent[root(below)] = root(key)
    found: dict[Key, list[Key]] = {}
    for key in placed:
        found.setdefault(root(key), []).append(key)
    return [
        Group(frozenset(keys), tuple(one for key in keys if isinstance(one := placed[key].object, Controller)
                                     and not placed[key].deleting))
        for keys in found.values()
    ]  # fmt: skip


def _leaves(entry: Entry) -> bool:
    return entry.deleting and isinstance(entry.object, Controller)


def _alone(desired: Desired) -> bool:
    """Whether there is the default target only, as on most hosts: everything is on it, however it hangs together."""
    return all(one.name == DEFAULT_TARGET for one in desired.targets())


def places(desired: Desired) -> Mapping[Key, frozenset[str]]:
    """The targets of everything, by name: of each object one, of a remote perhaps several."""
    if _alone(desired):
        return dict.fromkeys(desired.entries, frozenset({DEFAULT_TARGET}))
    known = {DEFAULT_TARGET} | {target.name for target in desired.targets()}
    leaving = [entry.object for entry in desired.entries.values() if _leaves(entry)]
    last = {key: one.target for one in leaving if isinstance(one, Controller) for key in one.depends_on}
    found: dict[Key, frozenset[str]] = {}
    for group in groups(desired):
        names = [one.target for one in group.controllers]
        names += [one.target for key in group.keys if isinstance(one := desired.entries[key].object, Controller)]
        names += [last[key] for key in sorted(group.keys & last.keys())]
        name = next((name for name in names if name in known), DEFAULT_TARGET)
        found |= dict.fromkeys(group.keys, frozenset({name}))
    shared: dict[Key, set[str]] = {}
    for key, entry in desired.entries.items():
        if isinstance(entry.object, TargetSettings):
            found[key] = frozenset({key.name})
        elif isinstance(entry.object, Volume):
            for below in entry.object.depends_on:
                if below.kind in _SHARED:
                    shared.setdefault(below, set()).update(found[key])
    everywhere = [key for key in desired.entries if key.kind in _SHARED]
    return found | {key: frozenset(shared.get(key, {DEFAULT_TARGET})) for key in everywhere}


def on(desired: Desired, target: str, absent: Collection[Key] = ()) -> Desired:
    """What is on one target.

    :param absent: keys of what is on its way between two targets, and on none.
    """
    if target == DEFAULT_TARGET and not absent and _alone(desired):
        return desired
    where = places(desired)
    return Desired({key: entry for key, entry in desired.entries.items() if target in where[key] and key not in absent})


def moving(before: Desired, after: Desired) -> dict[Key, tuple[str, str]]:
    """What is there before and after, on another target: from which to which, by name. Remotes do not move."""
    one, other = places(before), places(after)
    return {
        key: (from_, to)
        for key in one.keys() & other.keys()
        if key.kind not in UNBOUND
        for from_, to in [(min(one[key]), min(other[key]))]
        if from_ != to and not after.entries[key].deleting
    }


def changed_meanwhile(before: Desired, after: Desired, moved: Collection[Key]) -> set[str]:
    """Names of the controllers that move and are not the same afterwards, or of which a volume is not."""
    found = set[str]()
    for controller in (one for one in after.controllers() if one.key in moved):
        was = replace(before.controller(controller.name), target=controller.target)
        if was != controller or any(before.get(key) != after.get(key) for key in controller.depends_on):
            found.add(controller.name)
    return found


def check_moves(before: Desired, after: Desired) -> None:
    """Check that what goes to another target keeps its data.

    :raises ConflictError: it is in the memory of the target that it would leave.
    """
    for key, (from_, to) in moving(before, after).items():
        one = after.entries[key].object
        if isinstance(one, Volume) and one.volatile and one.backend != "null":
            raise ConflictError(
                f"volume {one.name}: its data is in the memory of target {from_}, and cannot move to {to}; take a file "
                "volume, or declare it together with its controller in a specification"
            )


def check(desired: Desired) -> None:
    """Check that each target is there, that what hangs together is on one, and that it goes with how that is run.

    :raises NotFoundError: a controller is on a target that there is not.
    :raises ConflictError: two controllers on different targets need the same thing, or one has too much.
    """
    known = {target.name: target for target in (desired.target(), *desired.targets())}
    for controller in desired.controllers():
        if controller.target not in known:
            raise NotFoundError(
                f"controller {controller.name}: there is no target {controller.target}; "
                f"`nvmuser target create {controller.target}` makes one"
            )
    for group in groups(desired) if len(known) > 1 else ():
        first = group.controllers[0] if group.controllers else None
        for other in group.controllers[1:]:
            if first and other.target != first.target:
                raise ConflictError(_apart(desired, first, other))
    cores.check(list(known.values()))
    for name, target in known.items():
        on(desired, name).check_served(target)


def _apart(desired: Desired, one: Controller, other: Controller) -> str:
    common = sorted(set(_below(desired, one)) & set(_below(desired, other)))
    # The topmost alone where a pool and what it lies on are both meant.
    pools = [key for key in common if key.kind == "pool"]
    what = (pools or common)[0].words if common else "what lies between them"
    return (
        f"controller {one.name}: it needs {what}, and so does controller {other.name}, but they are on different "
        f"targets ({one.target}, {other.target}), and it can be open in one only: move them together, such as "
        f"`nvmuser controller move {one.name} {other.name} --to {other.target}`"
    )


def _below(desired: Desired, controller: Controller) -> Iterator[Key]:
    """What a controller needs; snapshots of its volumes and their clones are needed through the pool alone."""
    left, seen = list(controller.depends_on), set[Key]()
    while left:
        key = left.pop()
        if key in seen or key.kind in _SHARED:
            continue
        seen.add(key)
        yield key
        left += desired.get(key).depends_on


def involved(keys: AbstractSet[Key], before: Desired, after: Desired, moved: Mapping[Key, tuple[str, str]]) -> set[str]:
    """Names of the targets that have something to do in a change, after what moves has left its old one.

    :param keys: of what changes.
    """
    names = {to for _, to in moved.values()}
    for where in (places(before), places(after)):
        names |= {name for key in keys - moved.keys() for name in where.get(key, ())}
    return names
