"""What every object that a person declares has: a name, under which it is kept; a shape that is JSON both ways; and, of
most, another name in SPDK.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from nvmuser.model import codec
from nvmuser.model.keys import Key
from nvmuser.model.names import NAME, check_name

Rules = Mapping[str, Mapping[str, Any]]
"""Of fields, as JSON Schema has them: `nvmuser.model.spec_schema` publishes what the classes check."""


@dataclass(frozen=True)
class Object:
    """Anything that has a name and is kept in the store."""

    kind: ClassVar[str]
    identity: ClassVar[tuple[str, ...]] = ()
    """Fields that are decided once, when it is declared; empty in what a person writes."""

    rules: ClassVar[Rules] = {"name": {"pattern": NAME}}
    refers: ClassVar[Mapping[str, str]] = {}
    """Fields that name other objects, and of which kind: they follow when one of those is renamed."""

    name: str

    def __post_init__(self) -> None:
        check_name(self.kind, self.name)

    @functools.cached_property
    def key(self) -> Key:
        return Key(self.kind, self.name)

    def check_declared(self) -> None:
        """Asked when it is declared, not whenever it is read: what a store holds since long ago stays readable.

        :raises UsageError: it cannot be declared so.
        """

    def to_json(self) -> dict[str, Any]:
        """Without what has its default value."""
        return {"kind": self.kind} | codec.compact(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return typing.cast(Self, codec.build(cls, {k: v for k, v in data.items() if k != "kind"}, cls.kind))


@dataclass(frozen=True)
class NamedInSpdk(Object):
    """What SPDK knows by a name that lasts as long as the object, while its own may change."""

    identity: ClassVar[tuple[str, ...]] = ("spdk_name",)
    rules: ClassVar[Rules] = {**Object.rules, "spdk_name": {"pattern": f"({NAME})?"}}

    spdk_name: str = field(default="", kw_only=True)
    """Empty: its own. Another one after it was renamed, or where the own was another's already."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spdk_name == self.name:
            object.__setattr__(self, "spdk_name", "")
        if self.spdk_name:
            check_name(f"{self.kind} {self.name}: its spdk_name, as a", self.spdk_name)

    @property
    def in_spdk(self) -> str:
        """By what name SPDK knows it: a volume in a pool within that, a remote's namespaces begin with it."""
        return self.spdk_name or self.name
