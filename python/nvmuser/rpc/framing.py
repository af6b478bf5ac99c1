"""Cuts a byte stream into JSON objects, as SPDK's JSON-RPC frames them: one object after another, no lengths.

Owns only where an object begins and ends. It does not decode text or parse JSON: a chunk may end anywhere,
also inside a character or an escape, and a whole object is decoded at once by who asked for it.
"""

from __future__ import annotations

import re

from nvmuser.errors import RpcConnectionError

_TOKEN = re.compile(rb'[^"{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}]*+)*+([{}"]?)', re.DOTALL)
"""What is between braces, with whole strings; then a brace, the quote of a string that has not ended yet, or the end
of what there is."""

_STRING_END = re.compile(rb'["\\]')


class FramingError(RpcConnectionError):
    """The peer does not send JSON objects, or sends one beyond the limit. The stream is of no further use."""


class ObjectSplitter:
    """Feed it chunks; it returns the objects that are complete.

    The scan never goes back over bytes it has seen, so that a large reply in small chunks costs time in
    proportion to its size.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._scanned = 0
        self._depth = 0
        self._in_string = False

    @property
    def pending(self) -> int:
        """Bytes held of an object that is not complete."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take `chunk`, return every object that it completes.

        :raises FramingError: when there is something else than whitespace between objects, or an object
            exceeds the limit.
        """
        self._buffer += chunk
        objects: list[bytes] = []
        start = 0
        while (end := self._scan(start)) is not None:
            objects.append(bytes(self._buffer[start:end]))
            start = end
        if start:
            del self._buffer[:start]
            self._scanned -= start
        if self._depth == 0 and not self._in_string:
            self._refuse_stray(0, len(self._buffer))
            self._buffer.clear()
            self._scanned = 0
        elif len(self._buffer) > self._limit:
            raise FramingError(f"a JSON object exceeds {self._limit} bytes")
        return objects

    def _refuse_stray(self, start: int, end: int) -> None:
        stray = bytes(self._buffer[start:end]).strip()
        if stray:
            raise FramingError(f"expected a JSON object, got {stray[:40]!r}")

    def _skip_string(self) -> bool:
        """Go on in a string that an earlier chunk began; True when its end was found."""
        while found := _STRING_END.search(self._buffer, self._scanned):
            if found.group() == b'"':
                self._scanned = found.end()
                self._in_string = False
                return True
            if found.end() == len(self._buffer):
                self._scanned = found.start()  # what the backslash escapes is still to come
                return False
            self._scanned = found.end() + 1
        self._scanned = len(self._buffer)
        return False

    def _scan(self, start: int) -> int | None:
        """Where the object that begins at `start` ends; None while it is not complete."""
        if self._in_string and not self._skip_string():
            return None
        for token in _TOKEN.finditer(self._buffer, self._scanned):
            kind, end = token[1], token.end()
            if not kind:
                break
            if self._depth == 0:
                self._refuse_stray(start, end if kind != b"{" else end - 1)
            if kind == b"{":
                self._depth += 1
            elif kind == b"}":
                self._depth -= 1
                if self._depth == 0:
                    self._scanned = end
                    return end
            else:
                self._in_string = True
                self._scanned = end
                self._skip_string()
                return None
        self._scanned = len(self._buffer)
        return None
