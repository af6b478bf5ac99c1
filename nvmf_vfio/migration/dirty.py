"""The pages of guest memory that were written since they were last reported.

Owns the bits. Who wrote a page, and when logging begins and ends, is its callers'.
"""

from __future__ import annotations

from nvmf_vfio.protocol.migration import PAGE

_CHUNK_BITS = 15
_CHUNK = 1 << _CHUNK_BITS
"""Pages in one integer: 128 MiB. What is never written takes no memory, wherever a guest has its maps."""
_FULL = (1 << _CHUNK) - 1


class DirtyLog:
    """A sparse bitmap, one bit a page. Nothing is logged until `start`."""

    def __init__(self) -> None:
        self.is_on = False
        self._chunks: dict[int, int] = {}

    def start(self) -> None:
        """Begin with nothing written. A log that is on goes on."""
        if not self.is_on:
            self._chunks.clear()
            self.is_on = True

    def stop(self) -> None:
        """End, and forget everything."""
        self.is_on = False
        self._chunks.clear()

    def mark(self, address: int, size: int) -> None:
        """Log a write of `size` bytes at a guest physical address."""
        if not self.is_on or size <= 0:
            return
        first, end = address // PAGE, -(-(address + size) // PAGE)
        while first < end:
            chunk, bit = divmod(first, _CHUNK)
            count = min(end - first, _CHUNK - bit)
            self._chunks[chunk] = self._chunks.get(chunk, 0) | ((1 << count) - 1) << bit
            first += count

    def merge(self, address: int, bitmap: bytes) -> None:
        """Log what somebody else has logged: a bit a page, from the one at `address` on, as `report` has them."""
        if not self.is_on:
            return
        chunk, bit = divmod(address // PAGE, _CHUNK)
        for start in range(0, len(bitmap), _CHUNK // 8):
            bits = int.from_bytes(bitmap[start : start + _CHUNK // 8], "little") << bit
            for number, part in ((chunk, bits & _FULL), (chunk + 1, bits >> _CHUNK)):
                if part:
                    self._chunks[number] = self._chunks.get(number, 0) | part
            chunk += 1

    def report(self, address: int, length: int) -> bytes:
        """The bits of a range, which are clear afterwards: little-endian, in whole 64-bit words.

        :param address: guest physical, a multiple of the page size, as is `length`.
        """
        first, end = address // PAGE, (address + length) // PAGE
        bits, at = 0, first
        while at < end:
            chunk, bit = divmod(at, _CHUNK)
            count = min(end - at, _CHUNK - bit)
            mask = ((1 << count) - 1) << bit
            if found := self._chunks.get(chunk, 0) & mask:
                bits |= found >> bit << at - first
                self._chunks[chunk] &= ~mask
            at += count
        return bits.to_bytes(-(-(end - first) // 64) * 8, "little")
