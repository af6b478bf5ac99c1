"""Which objects belong together: what lies on each other, directly or not. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from nvmuser.fleet.records import SHARED
from nvmuser.model.keys import Key


def grouped(below: Mapping[Key, Iterable[Key]], apart: Collection[str] = SHARED) -> dict[Key, Key]:
    """Key of each object → one of its group that stands for it. What many hosts reach joins nobody.

    :param below: what each lies on; what is not among the keys itself does not count.
    :param apart: kinds that join nobody.
    """
    parent = {key: key for key in below}

    def top(key: Key) -> Key:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for key, others in below.items():
        for other in others:
            if other in parent and not {key.kind, other.kind} & set(apart):
                parent[top(key)] = top(other)
    return {key: top(key) for key in parent}


def sets(below: Mapping[Key, Iterable[Key]], apart: Collection[str] = SHARED) -> list[set[Key]]:
    """The groups."""
    found: dict[Key, set[Key]] = {}
    for key, top in grouped(below, apart).items():
        found.setdefault(top, set()).add(key)
    return list(found.values())
