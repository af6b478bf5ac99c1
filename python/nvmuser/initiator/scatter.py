"""Data that lies in pages here and there, as a guest's driver hands it over: by a list of them (PRP).

Owns the list. SPDK's driver would describe one buffer, or several, by scatter-gather lists and split what does not fit;
a command with a list of pages goes to the controller as it is, so that a controller can be tried with what guests send.
"""

from __future__ import annotations

from collections.abc import Sequence

from nvmuser.errors import UsageError
from nvmuser.initiator.memory import PAGE, Memory, allocate

MAX_PAGES = PAGE // 8 + 1
"""One in the command, and as many as one page of the list names."""


class Scattered:
    """Pieces of DMA memory that are one command's data (NVM Express base specification, "PRP Entry and List").

    The first piece begins at any multiple of four, the others at a page; all but the last end at a page's end.
    """

    __slots__ = ("_list", "pieces", "prp1", "prp2", "size")
    into = None
    """Nothing is copied: see Transfer."""

    def __init__(self, pieces: Sequence[Memory]) -> None:
        self.pieces = tuple(pieces)
        self.size = sum(piece.size for piece in self.pieces)
        pages = _pages(self.pieces)
        self.prp1, rest = pages[0], pages[1:]
        self._list: Memory | None = None
        self.prp2 = rest[0] if rest else 0
        if len(rest) > 1:
            self._list = allocate(PAGE)
            self._list.view[: 8 * len(rest)] = b"".join(page.to_bytes(8, "little") for page in rest)
            self.prp2 = self._list.address


def scatter(pieces: Sequence[Memory]) -> Scattered:
    """Make one command's data of several pieces of DMA memory.

    :raises UsageError: they cannot be named by a list of pages, or are more than 513 pages.
    """
    return Scattered(pieces)


def _pages(pieces: tuple[Memory, ...]) -> list[int]:
    if not pieces or not all(piece.size for piece in pieces):
        raise UsageError("a command's data has one piece of memory or more, and none is empty")
    if pieces[0].address % 4:
        raise UsageError("the first piece begins at a multiple of four")
    pages = []
    for number, piece in enumerate(pieces):
        if number and piece.address % PAGE:
            raise UsageError(f"piece {number} does not begin at a page")
        if number < len(pieces) - 1 and (piece.address + piece.size) % PAGE:
            raise UsageError(f"piece {number} does not end at a page's end, and is not the last")
        end = piece.address + piece.size
        pages += [piece.address, *range(piece.address - piece.address % PAGE + PAGE, end, PAGE)]
    if len(pages) > MAX_PAGES:
        raise UsageError(f"{len(pages)} pages are more than a list of one page names ({MAX_PAGES})")
    return pages
