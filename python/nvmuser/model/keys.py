"""The key of an object: its kind and its name. Text (`volume/a`) at the edges alone: in JSON and in what is printed."""

from __future__ import annotations

from typing import NamedTuple, Self

from nvmuser.errors import UsageError


class Key(NamedTuple):
    """Frozen and sorted by kind, then name, as the store's rows are."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def words(self) -> str:
        """As messages have it: `volume a`."""
        return f"{self.kind} {self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """:raises UsageError: it is not of the form `kind/name`."""
        kind, slash, name = text.partition("/")
        if not slash:
            raise UsageError(f"key {text!r}: expected kind/name, such as volume/a")
        return cls(kind, name)
