"""By which names SPDK and the machine get to know what is new: its own, unless another was made with that before.

Pure. An object that was renamed keeps the name that it was made with there, which another may have for its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from nvmuser.model.identity import NQN_PREFIX
from nvmuser.model.named import NamedInSpdk, Object
from nvmuser.model.names import NAME_MAX
from nvmuser.model.objects import Controller, Volume

_One = TypeVar("_One", bound=Object)


class SpdkNames:
    """Those that are taken, and those that are handed out."""

    def __init__(self, known: Iterable[Object], declared: Iterable[Object]) -> None:
        """
        :param known: recorded objects, those that are being deleted too.
        :param declared: new ones, of which some may have a name there already.
        """
        self._taken: dict[tuple[str, str], set[str]] = {}
        for one in (*known, *filter(_has_one, declared)):
            self._taken.setdefault(scope(one), set()).add(name_in_spdk(one))

    def named(self, one: _One) -> _One:
        """With the name by which SPDK is to know it: a controller's NQN."""
        if _has_one(one):
            return one
        if isinstance(one, Controller):
            return replace(one, nqn=self._free(one, NQN_PREFIX))
        return replace(one, spdk_name=self._free(one)) if isinstance(one, NamedInSpdk) else one

    def _free(self, one: Object, prefix: str = "") -> str:
        taken = self._taken.setdefault(scope(one), set())
        name = next(name for each in _candidates(one.name) if (name := prefix + each) not in taken)
        taken.add(name)
        return name


def _candidates(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        end = f".{number}"
        yield name[: NAME_MAX - len(end)] + end
        number += 1


def _has_one(one: Object) -> bool:
    return bool(one.nqn if isinstance(one, Controller) else isinstance(one, NamedInSpdk) and one.spdk_name)


def scope(one: Object) -> tuple[str, str]:
    """Among which names its own has to be the only one."""
    return one.kind, one.pool if isinstance(one, Volume) else ""


def name_in_spdk(one: Object) -> str:
    """Of a recorded object; empty for what SPDK has no name for."""
    return one.nqn if isinstance(one, Controller) else one.in_spdk if isinstance(one, NamedInSpdk) else ""
