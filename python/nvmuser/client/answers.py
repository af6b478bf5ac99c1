"""What the API answers, typed, and its problems as errors. Pure: nothing is sent here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from nvmuser import errors
from nvmuser.errors import AccessError, NvmuserError, RpcConnectionError

_CODES: dict[str, type[NvmuserError]] = {
    one.kind: one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, NvmuserError) and one.__init__ is Exception.__init__
}


@dataclass(frozen=True)
class Object:
    """A volume, snapshot, pool, remote, controller or target.

    :param spec: what is declared of it, which can be sent back.
    :param status: how it fares.
    :param revision: changes with what is declared: `match` of a change.
    """

    spec: Mapping[str, Any]
    status: Mapping[str, Any]
    revision: str

    @property
    def name(self) -> str:
        return str(self.spec.get("name", ""))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["spec"], data["status"], data["revision"])


@dataclass(frozen=True)
class Event:
    """One change of one object. `before` and `after` None: there was, or is, none."""

    id: int
    time: float
    who: str
    source: str
    action: str
    kind: str
    name: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True)
class Operation:
    """An act that takes long. `state` is running, done or failed."""

    id: int
    what: str
    who: str
    state: str
    began: float
    ended: float | None
    progress: Mapping[str, int]
    result: Any
    problem: Mapping[str, Any] | None


def refuse(status: int, data: Any) -> NvmuserError:
    """The error of a problem, by its code."""
    if not isinstance(data, dict):
        return NvmuserError(f"the API answered with status {status}")
    code, detail = str(data.get("code", "")), str(data.get("detail", ""))
    if status in (401, 403):
        return AccessError(detail)
    return _CODES.get(code, NvmuserError)(detail)


def unreachable(url: str, error: Exception) -> NvmuserError:
    """Nobody answers, or not as the API does."""
    return RpcConnectionError(f"{url}: {error or type(error).__name__}")


class Reader:
    """Server-sent events, line by line."""

    def __init__(self) -> None:
        self._kind, self._data = "", ""

    def feed(self, line: str) -> Iterator[Event | None]:
        """The event that a line ends, if it ends one; None: something may have been missed, list again."""
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._kind = value
        elif field == "data":
            self._data = value
        elif not line and self._data:
            kind, data, self._kind, self._data = self._kind, self._data, "", ""
            yield None if kind == "reset" else Event(**json.loads(data))


def settings(url: str) -> tuple[str, str]:
    """The address of requests, and the path of a UNIX socket; empty where there is none."""
    return ("http://nvmuser", url.removeprefix("unix:")) if url.startswith("unix:") else (url, "")


def headers(token: str, match: str = "", after: int | None = None) -> dict[str, str]:
    """Those of a request: who asks, the revision that is to be changed, the event after which a watch goes on."""
    found = {"Authorization": f"Bearer {token}"} if token else {}
    found |= {"If-Match": f'"{match}"'} if match else {}
    return found | ({"Last-Event-ID": str(after)} if after is not None else {})


def query(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as the API reads them; what is None or False is left out."""
    chosen = {name: value for name, value in parameters.items() if value not in (None, False)}
    return {name: "true" if value is True else value for name, value in chosen.items()}
