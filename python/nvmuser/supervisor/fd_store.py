"""systemd's file-descriptor store: descriptors that a supervisor held are there for the next one of the service.

Owns the notifications (sdnotify(3): FDSTORE, FDSTOREREMOVE), the descriptors that systemd passes at the start
(sd_listen_fds(3)), and the index of what is stored. Without systemd, or without `FileDescriptorStoreMax=` in the unit,
it does nothing.

systemd drops a descriptor of a file that it has already (`service_add_fd_store` in src/core/service.c), whatever its
name, and guests send the same memory and the same eventfds again and again. So each file is stored once, under the name
with which it came first, and an index for each guest, a memfd that is stored too, maps its names to those.
"""

from __future__ import annotations

import array
import os
import socket
from collections import Counter
from pathlib import Path

from nvmf_vfio.keeper.channel import HeldFds
from nvmf_vfio.keeper.fd_store import Record
from nvmf_vfio.protocol.descriptors import Descriptor

_FIRST = 3
"""SD_LISTEN_FDS_START."""
_PREFIX = "nvmuser/"
_INDEX = "index"


def listed() -> list[str]:
    """The names of the descriptors, from 3 on, that systemd has passed to this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return names[: int(os.environ.get("LISTEN_FDS", "0"))]


def notify(message: str, descriptor: Descriptor | None = None) -> None:
    """Send a notification to systemd, if this process is a service of its (sdnotify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    control = []
    if descriptor:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor.fileno()]))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # A name in the abstract namespace is written with an at sign.
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.sendmsg([message.encode()], control)


class _Index:
    """A guest's names and the stored name of each, in a memfd."""

    def __init__(self, held: Descriptor | None = None) -> None:
        self._held = held or Record.create(_INDEX)
        self._record = Record(self._held)
        self.names: dict[str, str] = dict(self._record.document or {})

    def store(self, guest: str) -> None:
        _store(f"{guest}/{_INDEX}", self._held)

    def write(self) -> None:
        self._record.write(self.names)

    def end(self, guest: str) -> None:
        self._held.close()
        _remove(f"{guest}/{_INDEX}")


class SystemdFds(HeldFds):
    """Held descriptors of which systemd has copies too."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = bool(os.environ.get("NOTIFY_SOCKET"))
        self._indices: dict[str, _Index] = {}
        self._uses: Counter[str] = Counter()
        self._stored: dict[object, str] = {}
        self._files: dict[str, object] = {}
        found = {}
        for number, name in enumerate(listed(), _FIRST):
            if name.startswith(_PREFIX):
                os.set_inheritable(number, False)
                found[name.removeprefix(_PREFIX)] = Descriptor(number)
        self._take_over(found)

    def _take_over(self, found: dict[str, Descriptor]) -> None:
        for name in [name for name in found if name.rpartition("/")[2] == _INDEX]:
            index = self._indices[name.rpartition("/")[0]] = _Index(found.pop(name))
            names, index.names = index.names, {}
            for name, stored in names.items():
                if stored in found:
                    super().push(name, found[stored].duplicate())
                    index.names[name] = stored
                    self._use(stored, _identity(found[stored]))
        for stored, held in found.items():
            if not self._uses[stored]:
                # Stored, and in no index yet or any more: the supervisor was killed in between.
                _remove(stored)
            held.close()

    def _use(self, stored: str, file: object) -> None:
        self._uses[stored] += 1
        self._stored[file], self._files[stored] = stored, file

    def push(self, name: str, descriptor: Descriptor) -> None:
        super().push(name, descriptor)
        if not self._enabled:
            return
        file, guest = _identity(descriptor), name.rpartition("/")[0]
        stored = self._stored.get(file, name)
        if guest not in self._indices:
            self._indices[guest] = _Index()
            self._indices[guest].store(guest)
        self._indices[guest].names[name] = stored
        self._indices[guest].write()
        self._use(stored, file)
        if stored == name:
            _store(name, descriptor)

    def pop(self, name: str) -> None:
        guest = name.rpartition("/")[0]
        if (index := self._indices.get(guest)) and (stored := index.names.pop(name, None)):
            index.write()
            if not index.names:
                self._indices.pop(guest).end(guest)
            self._uses[stored] -= 1
            if not self._uses[stored]:
                del self._uses[stored], self._stored[self._files.pop(stored)]
                _remove(stored)
        super().pop(name)


def _store(name: str, descriptor: Descriptor) -> None:
    # FDPOLL=0: systemd must not remove a connection whose guest has hung up; the endpoint handles that.
    notify(f"FDSTORE=1\nFDNAME={_PREFIX}{name}\nFDPOLL=0", descriptor)


def _remove(name: str) -> None:
    notify(f"FDSTOREREMOVE=1\nFDNAME={_PREFIX}{name}")


def _identity(descriptor: Descriptor) -> object:
    """The same for two descriptors of one file. All eventfds share an inode; proc_pid_fdinfo(5) has their numbers."""
    facts = os.fstat(descriptor.fileno())
    lines = Path(f"/proc/self/fdinfo/{descriptor.fileno()}").read_text().splitlines()
    return facts.st_dev, facts.st_ino, next((line for line in lines if line.startswith("eventfd-id:")), None)
