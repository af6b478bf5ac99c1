"""Encrypted volumes as one: NAME is the volume of a person, NAME.sealed the one below it that holds ciphertext.

Owns that second name. To the rest, both are volumes as any other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nvmuser.errors import UsageError
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile.outcome import Outcome

_SUFFIX = ".sealed"
_OF_THE_KEY = ("key_file", "key_command")


def wanted(fields: dict[str, Any], encrypt: bool) -> bool:
    """Is a volume to be made of two? Makes the path of a key absolute.

    :raises UsageError: it is to be encrypted twice.
    """
    if fields["key_file"]:
        fields["key_file"] = os.path.abspath(fields["key_file"])
    if fields["backend"] == "crypt":
        if encrypt:
            raise UsageError("--encrypt puts an encrypted volume on another backend: leave --backend crypt out")
        return False
    return encrypt or any(fields[field] for field in _OF_THE_KEY)


def pair(name: str, fields: Mapping[str, Any]) -> tuple[Volume, Volume]:
    """What holds the ciphertext, and what shows the data."""
    below = {field: value for field, value in fields.items() if field not in _OF_THE_KEY}
    base = Volume(name + _SUFFIX, **below)
    key = {field: fields[field] for field in _OF_THE_KEY}
    return base, Volume(name, "crypt", base=base.name, block_size=base.block_size, volatile=base.volatile, **key)


def as_one(outcome: Outcome, name: str, below: str) -> Outcome:
    """What was made, as the person asked for it: the volume of that name, with the size of what is below."""
    made = {one["name"]: one for one in outcome.objects}
    size = {"size": made[below].get("size", 0)} if below != name else {}
    return replace(outcome, objects=(made[name] | size,))


def with_base(desired: Desired, key: Key) -> tuple[Key, ...]:
    """What goes with a volume: nobody can read what is below an encrypted one, once that is gone."""
    volume = desired.get(key)
    below = [one for one in volume.depends_on if one.name.endswith(_SUFFIX)]
    alone = isinstance(volume, Volume) and volume.backend == "crypt" and below
    return (key, below[0]) if alone and len(desired.users(below[0])) == 1 else (key,)


def sized(desired: Desired, name: str) -> str:
    """Which volume has the size of this one: the one that holds the ciphertext."""
    volume = desired.get(Key("volume", name))
    while isinstance(volume, Volume) and volume.backend == "crypt":
        volume = desired.get(Key("volume", volume.base))
    return volume.name
