"""Device directories, which stand for a vfio-user socket on the command line of a QEMU that only knows VFIO.

`-device vfio-pci,sysfsdev=<root>/<N>` with libvfio.so preloaded: QEMU reads the link `iommu_group` for the group's
number, and the library finds the socket as `cntrl` beside it. Owns these directories and the choice of N; it neither
connects to a socket nor builds command lines. The C side of the same agreement is libvfio/registry.h.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_GROUP_MAX = 2**31 - 1
_GROUP_LINK = "iommu_group"
_SOCKET_LINK = "cntrl"


def make(root: Path, number: int, socket: Path) -> Path:
    """Make `<root>/<number>` for `socket` (which may not exist yet), or point an existing one to it; return it.

    :raises ValueError: the number cannot be a group's, or something else is in the way.
    """
    if not 0 <= number <= _GROUP_MAX:
        raise ValueError(f"a group's number is 0 to {_GROUP_MAX}, not {number}")
    directory = root / str(number)
    # Readable by all: the socket decides who may connect.
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Only the last component counts. It need not exist: QEMU reads the link and does not follow it.
    _link(directory / _GROUP_LINK, f"iommu_groups/{number}")
    # Last: a directory with this link is complete.
    _link(directory / _SOCKET_LINK, os.path.abspath(socket))
    return directory


def remove(root: Path, number: int) -> None:
    """Remove `<root>/<number>`, if it exists. A guest that uses the device keeps it.

    :raises ValueError: it holds files that `make` did not put there.
    """
    directory = root / str(number)
    for name in (_GROUP_LINK, _SOCKET_LINK):
        if (directory / name).is_symlink():
            (directory / name).unlink()
    with contextlib.suppress(FileNotFoundError):
        try:
            directory.rmdir()
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{directory} holds something else: {error.strerror}") from error


def socket_of(root: Path, number: int) -> Path | None:
    """The socket that `<root>/<number>` stands for, or None if there is no such directory."""
    link = root / str(number) / _SOCKET_LINK
    return Path(os.readlink(link)) if link.is_symlink() else None


def numbers(root: Path) -> dict[int, Path]:
    """All device directories under `root`: their numbers and sockets."""
    try:
        names = [entry.name for entry in root.iterdir() if entry.name.isdecimal()]
    except FileNotFoundError:
        return {}
    found = {int(name): socket_of(root, int(name)) for name in names}
    return {number: socket for number, socket in sorted(found.items()) if socket is not None}


class Devices:
    """The device directories under `root`, as they were at construction, with the changes made here since."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = {socket: number for number, socket in numbers(root).items()}
        self._taken = set(self._numbers.values())

    def choose(self, socket: Path, *, first: int = 1) -> Path:
        """The directory for `socket`: the one it has, else of the lowest free number from `first`. Makes nothing."""
        return self._root / str(self._number(Path(os.path.abspath(socket)), first))

    def assign(self, socket: Path, *, first: int = 1) -> Path:
        """Make the directory that `choose` would return.

        :raises ValueError: something else is in the way.
        """
        socket = Path(os.path.abspath(socket))
        return make(self._root, self._number(socket, first), socket)

    def _number(self, socket: Path, first: int) -> int:
        if socket not in self._numbers:
            number = first
            while number in self._taken or (self._root / str(number)).exists():
                number += 1
            self._numbers[socket] = number
            self._taken.add(number)
        return self._numbers[socket]

    def forget(self, socket: Path) -> None:
        """Remove the directory that stands for `socket`, if there is one."""
        number = self._numbers.pop(Path(os.path.abspath(socket)), None)
        if number is not None:
            self._taken.discard(number)
            remove(self._root, number)


def _link(link: Path, target: str) -> None:
    """Make a symbolic link in one step, also over an older one: a QEMU may be reading it."""
    with contextlib.suppress(FileExistsError):
        link.symlink_to(target)
        return
    if not link.is_symlink():
        raise ValueError(f"{link} is in the way: it is no link of ours")
    if os.readlink(link) == target:
        return
    scratch = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        scratch.unlink()
    scratch.symlink_to(target)
    scratch.replace(link)
