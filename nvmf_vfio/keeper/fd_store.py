"""State that outlives the endpoint process: descriptors copied to the supervisor, and a session's record in a memfd.

Owns the names under which descriptors are stored and the layout of a record. The supervisor owns the copies;
`nvmf_vfio.keeper.channel` carries them there.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable
from typing import Any

from nvmf_vfio.protocol.descriptors import Descriptor

_SLOT_HEADER = struct.Struct("<QII")
_SLOT_SIZE = 1 << 20
_File = tuple[int, int, int]
"""Device, inode and access mode."""


def _file(descriptor: Descriptor) -> _File | None:
    """Identify a regular file; None for others, since all eventfds have one inode."""
    facts = os.fstat(descriptor.fileno())
    if not stat.S_ISREG(facts.st_mode):
        return None
    return facts.st_dev, facts.st_ino, fcntl.fcntl(descriptor.fileno(), fcntl.F_GETFL) & os.O_ACCMODE


class RecordFull(Exception):
    """The document is larger than a record can be."""


class StoredFd:
    """A descriptor of which the supervisor has a copy, under `name`. It may have several users."""

    __slots__ = ("_store", "_users", "descriptor", "file", "name")

    def __init__(self, store: FdStore, name: str, descriptor: Descriptor) -> None:
        self._store = store
        self._users = 0
        self.name = name
        self.descriptor = descriptor
        self.file = _file(descriptor)

    def share(self) -> StoredFd:
        """Count one more user, who releases it."""
        self._users += 1
        return self

    def release(self) -> None:
        """End one use; the last one closes the descriptor here, and in the supervisor once no record names it."""
        self._users -= 1
        if self._users <= 0:
            self.descriptor.close()
            self._store.remove(self)


class FdStore:
    """The stored descriptors of one session.

    :param push: hands a copy to the supervisor, under a name.
    :param pop: makes the supervisor close its copy.
    """

    def __init__(self, prefix: str, push: Callable[[str, Descriptor], None], pop: Callable[[str], None]) -> None:
        self.prefix = prefix
        self._push = push
        self._pop = pop
        self._stored: dict[str, StoredFd] = {}
        self._by_file: dict[_File, StoredFd] = {}
        self._removed: list[str] = []
        self._next = 0

    def push(self, descriptor: Descriptor) -> StoredFd:
        """Take a descriptor over and hand a copy to the supervisor.

        A guest's memory is in few files, of which it maps thousands of pieces: a file is stored once.
        """
        file = _file(descriptor)
        if file is not None and (known := self._by_file.get(file)):
            descriptor.close()
            return known.share()
        name = f"{self.prefix}/{self._next}"
        self._next += 1
        return self.adopt(name, descriptor, push=True).share()

    def adopt(self, name: str, descriptor: Descriptor, *, push: bool = False) -> StoredFd:
        """Take over a descriptor that the supervisor already has under `name` (or, with `push`, receives now)."""
        # The descriptor has its owner before anything can fail.
        self._stored[name] = stored = StoredFd(self, name, descriptor)
        if stored.file is not None:
            self._by_file[stored.file] = stored
        if push:
            self._push(name, descriptor)
        serial = name.rpartition("/")[2]
        if serial.isdigit():
            self._next = max(self._next, int(serial) + 1)
        return stored

    def remove(self, stored: StoredFd) -> None:
        """Remove a descriptor. The supervisor closes its copy at `commit`: until then the record may still name it."""
        if self._stored.pop(stored.name, None):
            self._removed.append(stored.name)
        if stored.file is not None and self._by_file.get(stored.file) is stored:
            del self._by_file[stored.file]

    def commit(self) -> None:
        """Have the supervisor close what was removed: the record that has just been written does not name it."""
        removed, self._removed = self._removed, []
        for name in removed:
            self._pop(name)

    def remove_others(self, names: set[str]) -> None:
        """Release the numbered descriptors that are not in `names`: handed over, but in no record yet, by an endpoint
        that was killed."""
        for name, stored in list(self._stored.items()):
            if name not in names and name.rpartition("/")[2].isdigit():
                stored.release()

    def push_all(self) -> None:
        """Hand every descriptor to a new supervisor."""
        for name, stored in self._stored.items():
            self._push(name, stored.descriptor)

    def close(self) -> None:
        """Release everything."""
        for stored in list(self._stored.values()):
            stored.descriptor.close()
            self.remove(stored)
        self.commit()


class Encoded(str):
    """JSON text, as a value of a document's outermost object. Long values that rarely change are encoded once."""

    __slots__ = ()


_compact = json.JSONEncoder(separators=(",", ":")).encode


def _encode(document: Any) -> bytes:
    """All that is not encoded yet in one call: a record is written at each register that a driver sets."""
    if not isinstance(document, dict):
        return _compact(document).encode()
    plain = _compact({key: value for key, value in document.items() if not isinstance(value, Encoded)})
    encoded = [f"{_compact(key)}:{value}" for key, value in document.items() if isinstance(value, Encoded)]
    return f"{{{','.join(filter(None, (plain[1:-1], *encoded)))}}}".encode()


class Record:
    """A JSON document in a memfd that is either its old or its new self, whenever this process is killed.

    Two slots are written in turn; each has a generation and a checksum, and the newest whole one counts.

    :param first: the first slot of this document, so that two documents share a memfd.
    """

    def __init__(self, descriptor: Descriptor, first: int = 0) -> None:
        self._descriptor = descriptor
        self._first = first
        self._generation = 0
        for generation, document in self._slots():
            if generation > self._generation:
                self._generation, self.document = generation, document

    document: Any = None
    """What the record held when it was opened."""

    @staticmethod
    def create(name: str) -> Descriptor:
        """Make an empty memfd for a record; `name` shows in /proc/PID/fd.

        :raises OSError: no descriptor or no memory is left.
        """
        return Descriptor(os.memfd_create(name, os.MFD_CLOEXEC))

    def _slots(self) -> list[tuple[int, Any]]:
        slots = []
        number = self._descriptor.fileno()
        for slot in (0, 1):
            offset = (self._first + slot) * _SLOT_SIZE
            head = os.pread(number, _SLOT_HEADER.size, offset)
            if len(head) < _SLOT_HEADER.size:
                continue
            generation, length, checksum = _SLOT_HEADER.unpack(head)
            if length > _SLOT_SIZE - _SLOT_HEADER.size:
                continue
            data = os.pread(number, length, offset + _SLOT_HEADER.size)
            if generation and data and len(data) == length and _checksum(generation, data) == checksum:
                slots.append((generation, json.loads(data)))
        return slots

    def write(self, document: Any) -> None:
        """Replace the document.

        :raises RecordFull: it is too large for its slot, and the next slot is another document's.
        """
        data = _encode(document)
        if len(data) > _SLOT_SIZE - _SLOT_HEADER.size:
            raise RecordFull(f"{len(data)} bytes in a record of {_SLOT_SIZE}")
        self._generation += 1
        head = _SLOT_HEADER.pack(self._generation, len(data), _checksum(self._generation, data))
        offset = (self._first + self._generation % 2) * _SLOT_SIZE
        # One write: a reader that finds half of it finds a checksum that does not fit.
        os.pwrite(self._descriptor.fileno(), head + data, offset)


def _checksum(generation: int, data: bytes) -> int:
    """Cover both: a slot with a new generation and the document of an old one is not whole."""
    return zlib.crc32(data, generation & 0xFFFFFFFF)
