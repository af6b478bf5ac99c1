"""Why a call is refused: CSI's codes, and which of them an error of nvmuser is."""

from __future__ import annotations

from nvmuser.errors import AccessError, ConflictError, NotFoundError, NvmuserError, RpcConnectionError, UsageError

_CODES: tuple[tuple[type[NvmuserError], str], ...] = (
    (NotFoundError, "NOT_FOUND"),
    (UsageError, "INVALID_ARGUMENT"),
    (ConflictError, "FAILED_PRECONDITION"),
    (AccessError, "PERMISSION_DENIED"),
    (RpcConnectionError, "UNAVAILABLE"),
)


class Refused(Exception):
    """:param code: gRPC's name of the reason."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def code_of(error: Exception) -> str:
    """gRPC's name of the reason for any error."""
    if isinstance(error, Refused):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), "INTERNAL")


def demand(present: object, what: str) -> None:
    """:raises Refused: a field that CSI requires is empty."""
    if not present:
        raise Refused("INVALID_ARGUMENT", f"{what} is missing")
