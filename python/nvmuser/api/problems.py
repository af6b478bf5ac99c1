"""Errors as `application/problem+json` (RFC 9457): the texts and codes of the command line, with HTTP's statuses."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nvmuser.errors import NvmuserError, UsageError, reason_of
from nvmuser.model.codec import FieldError

MEDIA_TYPE = "application/problem+json"

_STATUSES = {
    "usage": 400,
    "not-found": 404,
    "conflict": 409,
    "stale": 412,
    "access": 403,
    "setup": 409,
    "target": 409,
    "target-not-running": 503,
    "rpc-server": 409,
    "rpc": 503,
    "rpc-connection": 503,
    "rpc-timeout": 503,
    "no-space": 507,
    "fleet-unavailable": 503,
}
"""Code of an error (docs/cli.md) → HTTP status."""

_TITLES = {
    400: "The request is wrong",
    401: "Who are you?",
    403: "Not allowed",
    404: "There is none",
    405: "Not a method of this resource",
    408: "Too slow",
    409: "Not possible as things are",
    412: "Somebody else has changed it",
    413: "Too large",
    415: "Not in a format that is read here",
    429: "Too many requests",
    500: "A defect of nvmuser",
    503: "Not now",
    507: "No space left",
}


@dataclass
class Problem(Exception):
    """What a request ends with that is refused.

    :param code: for programs: `NvmuserError.kind`, or one of HTTP's own (`unauthenticated`, `forbidden`, `rate`).
    :param pointer: to the field of the body that is wrong (RFC 6901); empty where no field is.
    """

    status: int
    code: str
    detail: str
    pointer: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        found = {"type": "about:blank", "title": title(self.status), "status": self.status}
        found |= {"code": self.code, "detail": self.detail}
        return found | ({"pointer": self.pointer} if self.pointer else {})


def title(status: int) -> str:
    """A status in a few words."""
    return _TITLES.get(status, "It failed")


def of_error(error: NvmuserError | OSError) -> Problem:
    """An error of the libraries. What is wrong in the caller's input is 400, and nothing was tried."""
    if isinstance(error, FieldError):
        return Problem(400, error.kind, str(error), pointer(error.path))
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return Problem(507 if full else 409, "no-space" if full else "system", reason_of(error))
    status = _STATUSES.get(error.kind, 400 if isinstance(error, UsageError) else 409)
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Problem(status, error.kind, " ".join(str(error).split()), headers=headers)


def pointer(path: tuple[str | int, ...]) -> str:
    """To a field of a body."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)
