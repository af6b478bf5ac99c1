"""systemd's file-descriptor store, as a second keeper: what a supervisor kept is there for the next one of the service.

Owns the notifications (sdnotify(3): FDSTORE, FDSTOREREMOVE) and the descriptors that systemd passes at the start
(sd_listen_fds(3)). Without systemd, or without `FileDescriptorStoreMax=` in the unit, it does nothing.
"""

from __future__ import annotations

import array
import os
import socket

from nvmf_vfio.channel import Keeper
from nvmf_vfio.descriptors import Descriptor

_FIRST = 3
"""SD_LISTEN_FDS_START."""
_PREFIX = "nvmuser/"


def listed() -> list[str]:
    """The names of the descriptors, from 3 on, that systemd has passed to this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return names[: int(os.environ.get("LISTEN_FDS", "0"))]


def notify(message: str, descriptor: Descriptor | None = None) -> None:
    """Tell systemd, if this is a service of its (sdnotify(3))."""
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


class StoredKeeper(Keeper):
    """A keeper whose descriptors systemd keeps too."""

    def __init__(self) -> None:
        super().__init__()
        for number, name in enumerate(listed(), _FIRST):
            if name.startswith(_PREFIX):
                os.set_inheritable(number, False)
                super().put(name.removeprefix(_PREFIX), Descriptor(number))

    def put(self, name: str, descriptor: Descriptor) -> None:
        super().put(name, descriptor)
        # FDPOLL=0: systemd must not throw out a connection whose guest has hung up; that is ours to see.
        notify(f"FDSTORE=1\nFDNAME={_PREFIX}{name}\nFDPOLL=0", descriptor)

    def drop(self, name: str) -> None:
        if name in self:
            notify(f"FDSTOREREMOVE=1\nFDNAME={_PREFIX}{name}")
        super().drop(name)
