"""What must outlive the endpoint process: descriptors in the keeper's hands, and the record of a session in a memfd.

Owns the names under which descriptors are kept and the layout of a record. The keeper itself (the supervisor) owns the
copies; `nvmf_vfio.keeper.channel` carries them there.
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
    """Which file this is, when it is a regular one. All eventfds have one inode."""
    facts = os.fstat(descriptor.fileno())
    if not stat.S_ISREG(facts.st_mode):
        return None
    return facts.st_dev, facts.st_ino, fcntl.fcntl(descriptor.fileno(), fcntl.F_GETFL) & os.O_ACCMODE


class RecordFull(Exception):
    """The document is larger than a record can be."""


class Kept:
    """A descriptor of which the keeper has a copy, under `name`. It may have several users."""

    __slots__ = ("_users", "_vault", "descriptor", "file", "name")

    def __init__(self, vault: Vault, name: str, descriptor: Descriptor) -> None:
        self._vault = vault
        self._users = 0
        self.name = name
        self.descriptor = descriptor
        self.file = _file(descriptor)

    def share(self) -> Kept:
        """For one more user, who releases it."""
        self._users += 1
        return self

    def release(self) -> None:
        """By its last user: close it here, and in the keeper once no record names it."""
        self._users -= 1
        if self._users <= 0:
            self.descriptor.close()
            self._vault.forget(self)


class Vault:
    """The kept descriptors of one session.

    :param put: hands a copy to the keeper; `drop` makes the keeper close it.
    """

    def __init__(self, prefix: str, put: Callable[[str, Descriptor], None], drop: Callable[[str], None]) -> None:
        self.prefix = prefix
        self._put = put
        self._drop = drop
        self._kept: dict[str, Kept] = {}
        self._by_file: dict[_File, Kept] = {}
        self._forgotten: list[str] = []
        self._next = 0

    def keep(self, descriptor: Descriptor) -> Kept:
        """Take a descriptor over and hand a copy to the keeper.

        A guest's memory is in few files, of which it maps thousands of pieces: a file is kept once.
        """
        file = _file(descriptor)
        if file is not None and (known := self._by_file.get(file)):
            descriptor.close()
            return known.share()
        name = f"{self.prefix}/{self._next}"
        self._next += 1
        return self.adopt(name, descriptor, put=True).share()

    def adopt(self, name: str, descriptor: Descriptor, *, put: bool = False) -> Kept:
        """Take over a descriptor that the keeper already has under `name` (or, with `put`, is to get)."""
        # It has its owner before anything can fail.
        self._kept[name] = kept = Kept(self, name, descriptor)
        if kept.file is not None:
            self._by_file[kept.file] = kept
        if put:
            self._put(name, descriptor)
        serial = name.rpartition("/")[2]
        if serial.isdigit():
            self._next = max(self._next, int(serial) + 1)
        return kept

    def forget(self, kept: Kept) -> None:
        """The keeper closes its copy at the next `settle`: until then the record may still name it."""
        if self._kept.pop(kept.name, None):
            self._forgotten.append(kept.name)
        if kept.file is not None and self._by_file.get(kept.file) is kept:
            del self._by_file[kept.file]

    def settle(self) -> None:
        """No record names what was forgotten."""
        forgotten, self._forgotten = self._forgotten, []
        for name in forgotten:
            self._drop(name)

    def retain(self, names: set[str]) -> None:
        """Release the numbered descriptors that are not in `names`: handed over, but in no record yet, by an endpoint
        that was killed."""
        for name, kept in list(self._kept.items()):
            if name not in names and name.rpartition("/")[2].isdigit():
                kept.release()

    def offer(self) -> None:
        """Hand every descriptor to a keeper that is new."""
        for name, kept in self._kept.items():
            self._put(name, kept.descriptor)

    def close(self) -> None:
        """Release everything."""
        for kept in list(self._kept.values()):
            kept.descriptor.close()
            self.forget(kept)
        self.settle()


class Encoded(str):
    """JSON text, as a value of a document's outermost object: what is long and changes little is encoded once."""

    __slots__ = ()


def _encode(document: Any) -> bytes:
    if not isinstance(document, dict):
        return json.dumps(document, separators=(",", ":")).encode()
    fields = (
        f"{json.dumps(key)}:{value if isinstance(value, Encoded) else json.dumps(value, separators=(',', ':'))}"
        for key, value in document.items()
    )
    return ("{" + ",".join(fields) + "}").encode()


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
    """Of both: a slot with a new generation and the document of an old one is not whole."""
    return zlib.crc32(data, generation & 0xFFFFFFFF)
