"""A device whose guest migrates: what is kept for it beside what it saves itself, and the bytes of both.

A state comes from another host: it is judged before anything of it is used. Which states there are, and their order, is
libvfio-user's.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from nvmuser.errors import DeviceError
from nvmuser.pci.bars import BarMemory

_HEAD = struct.Struct("<8sIIII")
_MAGIC = b"nvmudev\x01"
_MOST = 64 << 20
"""Bytes of a device's own, and of all its mappable memory."""


@dataclass(frozen=True)
class State:
    """Of one device.

    :ivar own: what its `save` returned.
    :ivar memories: of its mappable BARs, by their numbers.
    :ivar intx: whether it asserts INTA#.
    :ivar pending: vectors that it has triggered while the guest stood still.
    """

    own: bytes
    memories: Mapping[int, bytes]
    intx: bool
    pending: frozenset[int]

    def pack(self) -> bytes:
        """In bytes."""
        vectors = struct.pack(f"<{len(self.pending)}H", *sorted(self.pending))
        memory = b"".join(data for _, data in sorted(self.memories.items()))
        return _HEAD.pack(_MAGIC, self.intx, len(vectors), len(memory), len(self.own)) + vectors + memory + self.own


def is_whole(data: bytes | bytearray) -> bool:
    """Whether all of a state has come.

    :raises DeviceError: this is the beginning of none.
    """
    if len(data) < _HEAD.size:
        if data[:8] != _MAGIC[: len(data)]:
            raise _refusal("not the state of a device")
        return False
    magic, intx, *sizes = _HEAD.unpack_from(data)
    if magic != _MAGIC or intx > 1 or max(sizes) > _MOST:
        raise _refusal("not the state of a device")
    if len(data) > _HEAD.size + sum(sizes):
        raise _refusal("more than the state of a device")
    return bool(len(data) == _HEAD.size + sum(sizes))


def unpack(data: bytes | bytearray, memories: Mapping[int, int], vectors: int) -> State:
    """A state that is whole.

    :param memories: sizes of the device's mappable BARs, by their numbers. :param vectors: that it has.
    :raises DeviceError: it is of another device.
    """
    _, intx, listed, memory, _ = _HEAD.unpack_from(data)
    if memory != sum(memories.values()) or listed % 2:
        raise _refusal("the state of another device")
    at = _HEAD.size + listed
    pending = frozenset(struct.unpack_from(f"<{listed // 2}H", data, _HEAD.size))
    if pending and max(pending) >= vectors:
        raise _refusal("the state of another device")
    found: dict[int, bytes] = {}
    for index, size in sorted(memories.items()):
        found[index] = bytes(data[at : at + size])
        at += size
    return State(bytes(data[at:]), found, bool(intx), pending)


def _refusal(why: str) -> DeviceError:
    return DeviceError(why, errno.EINVAL)


class Handler(Protocol):
    """The device, as far as it travels."""

    def save(self) -> bytes:
        """Return the state of the device, which stands still."""

    def load(self, data: bytes) -> None:
        """Take a state that another device's `save` has returned."""

    @property
    def asserts_intx(self) -> bool:
        """Whether INTA# is asserted."""

    def resume_intx(self, asserted: bool) -> None:
        """Drive INTA# as it was, towards a client that has heard nothing of it yet."""


class Travel:
    """Of one device, wherever its guest is.

    :param memories: of its mappable BARs. :param vectors: that it has. :param trigger: interrupts the guest.
    """

    def __init__(
        self, handler: Handler, memories: Mapping[int, BarMemory], vectors: int, trigger: Callable[[int], object]
    ) -> None:
        self._handler = handler
        self._memories = memories
        self._vectors = vectors
        self._trigger = trigger
        self._still = False
        self._pending: set[int] = set()
        self._outgoing = b""
        self._incoming = bytearray()

    def reset(self) -> None:
        """The device is as after power-on."""
        self._still = False
        self._pending.clear()

    def keeps(self, vector: int) -> bool:
        """Whether an interrupt waits until the guest runs, here or elsewhere."""
        if self._still and 0 <= vector < self._vectors:
            self._pending.add(vector)
            return True
        return False

    def enter(self, *, runs: bool, saves: bool, loads: bool) -> None:
        """Enter a state: the guest runs, or stands still and the device may be saved or loaded."""
        self._still, self._outgoing = not runs, b""
        if saves:
            memories = {index: memory.view.tobytes() for index, memory in self._memories.items()}
            own = self._handler.save()
            self._outgoing = State(own, memories, self._handler.asserts_intx, frozenset(self._pending)).pack()
        elif loads:
            self._incoming.clear()
        elif runs:
            pending, self._pending = self._pending, set()
            for vector in sorted(pending):
                self._trigger(vector)

    def read(self, size: int) -> bytes:
        """The next part of what was saved; empty at its end."""
        part, self._outgoing = self._outgoing[:size], self._outgoing[size:]
        return part

    def write(self, data: bytes) -> None:
        """Take a part of a state; with its last one it is loaded, while its guest can still stay where it is.

        :raises DeviceError: it is none, or another device's.
        """
        self._incoming += data
        if not is_whole(self._incoming):
            return
        sizes = {index: memory.view.nbytes for index, memory in self._memories.items()}
        state = unpack(self._incoming, sizes, self._vectors)
        self._handler.load(state.own)
        for index, content in state.memories.items():
            self._memories[index].view[:] = content
        self._pending = set(state.pending)
        self._handler.resume_intx(state.intx)
