"""Replies of earlier targets that hold for the next one: what the device is does not change when its target does.

Owns the bounds; which commands may be cached is `nvmf_vfio.replies`'.
"""

from __future__ import annotations

from typing import Any

_MAX_REPLIES = 64
_MAX_BYTES = 4096
"""Of one request and its reply together."""


class ReplyCache:
    """Replies by command and request. A guest chooses the requests: what does not fit is not remembered."""

    def __init__(self) -> None:
        self._replies: dict[tuple[int, bytes], bytes] = {}

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, command: int, request: bytes) -> bytes | None:
        """The payload with which a target has answered this request; None when none has."""
        return self._replies.get((command, request))

    def add(self, command: int, request: bytes, reply: bytes) -> None:
        """Remember a reply, if there is room for it."""
        if len(request) + len(reply) <= _MAX_BYTES and len(self._replies) < _MAX_REPLIES:
            self._replies[(command, request)] = reply

    def to_json(self) -> list[Any]:
        """The cache for the session's record."""
        return [[command, request.hex(), reply.hex()] for (command, request), reply in self._replies.items()]

    def load_json(self, document: list[Any]) -> None:
        """Take over what `to_json` returned.

        :raises ValueError: the document has another layout.
        """
        self._replies = {(command, bytes.fromhex(body)): bytes.fromhex(reply) for command, body, reply in document}
