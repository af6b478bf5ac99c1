"""A call that is still to be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MIB = 1 << 20


@dataclass(frozen=True)
class Request:
    """A method of SPDK with its parameters, in the names and units of its `schema/schema.json`."""

    method: str
    params: Mapping[str, Any]


def mib(size: int) -> int:
    """Bytes in MiB, for parameters that are in MiB: never less than was asked for."""
    return -(-size // _MIB)
