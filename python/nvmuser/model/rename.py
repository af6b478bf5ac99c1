"""Another name for an object, under which it stays what it is: its data, its identity and its users.

Pure. What SPDK and the machine know of it keeps the name that it was made with, so that nothing has to be done to what
is in use; of a controller only, the socket is where its name says.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any, TypeVar

from nvmuser.errors import ConflictError, UsageError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.named import NamedInSpdk
from nvmuser.model.objects import TargetSettings

_Any = TypeVar("_Any")


def renamed(desired: Desired, key: Key, name: str) -> Desired:
    """What is wanted with the object under another name, and everything that refers to it.

    :raises NotFoundError: there is no such object.
    :raises ConflictError: the name is in use.
    :raises UsageError: it is no name.
    """
    one, new = desired.get(key), Key(key.kind, name)
    if isinstance(one, TargetSettings):
        raise UsageError("the target has no name")
    if new == key:
        return desired
    after = replace(one, name=name, spdk_name=one.in_spdk) if isinstance(one, NamedInSpdk) else replace(one, name=name)
    if there := desired.entries.get(new):
        why = "its deletion is not finished yet" if there.deleting else "exists already"
        raise ConflictError(f"{new.words}: {why}; choose another name")
    entries = {
        other: entry if (object_ := _following(entry.object, key, name)) is entry.object
        else replace(entry, object=object_)
        for other, entry in desired.entries.items() if other != key
    }  # fmt: skip
    entries[new] = replace(desired.entries[key], object=after)
    return Desired(dict(sorted(entries.items())))


def _following(one: _Any, key: Key, name: str) -> _Any:
    """An object, or a part of one, with its references; itself where it has none to the key."""
    changed: dict[str, Any] = {}
    refers = getattr(one, "refers", {})
    for field in dataclasses.fields(one):  # type: ignore[arg-type]
        value = getattr(one, field.name)
        if refers.get(field.name) == key.kind:
            after = _replaced(value, key.name, name)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            after = tuple(_following(part, key, name) for part in value)
        else:
            continue
        if after != value:
            changed[field.name] = after
    return replace(one, **changed) if changed else one  # type: ignore[type-var]


def _replaced(value: str | tuple[str, ...], old: str, new: str) -> str | tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(new if name == old else name for name in value)
    return new if value == old else value
