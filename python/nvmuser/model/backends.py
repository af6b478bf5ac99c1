"""What each backend of a volume may and must declare, and what it can do: one entry for each, in the order in which a
person is shown them.

Pure, and without SPDK: how a volume of a backend is made there is its module's in `nvmuser.reconcile.backends`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nvmuser.model.sizes import MIB

if TYPE_CHECKING:
    from nvmuser.model.objects import Volume


@dataclass(frozen=True)
class Backend:
    """The rules of one backend."""

    name: str
    summary: str
    """For help: what it is, and which fields it needs."""
    takes: tuple[str, ...]
    """Fields of a volume that are its own: those of another backend are refused by name."""
    requires: tuple[str, ...] = ()
    """Fields that must be given, of which `needs` speaks."""
    needs: str = ""
    volatile: bool = False
    """Its data dies with the target, which a declaration has to accept."""
    grows: bool = False
    unit: int = 1
    """Bytes that SPDK counts its sizes in: a size is rounded up to whole ones, for a volume in a pool to whole
    clusters too."""
    interrupts: bool = False
    """It can do without a poller, if what it lies on can: the profile eco needs that."""
    erased: bool = False
    """Deleting a volume of it deletes its data, also when what it lies on was there before."""

    @property
    def sized(self) -> bool:
        """It takes a size; others have the size of what they lie on."""
        return "size" in self.takes

    @property
    def article(self) -> str:
        return "an" if self.name[0] in "aeiol" else "a"

    def lacks(self, volume: Volume) -> bool:
        """Is a field missing that it requires?"""
        return any(not _given(getattr(volume, field)) for field in self.requires)


def _given(value: Any) -> bool:
    """Members are two or more, numbers from 1."""
    if isinstance(value, tuple):
        return len(value) > 1
    return value > 0 if isinstance(value, int) else bool(value)


_MEMBERS = {"takes": ("members",), "requires": ("members",), "needs": "two members or more", "interrupts": True}
_BASE = {"requires": ("base",), "needs": "a base volume"}

BACKENDS: dict[str, Backend] = {
    one.name: one
    for one in (
        Backend("file", "a file or block device", ("size", "path", "owned", "thin"), grows=True, interrupts=True),
        Backend("malloc", "memory, lost with the target", ("size",), volatile=True),
        Backend("null", "nothing, for measurements", ("size",), volatile=True, grows=True, unit=MIB),
        Backend(
            "lvol",
            "in a --pool",
            ("size", "pool", "thin", "snapshot_of", "clone_of", "inflated"),
            requires=("pool",),
            needs="a pool",
            grows=True,
            unit=MIB,
            interrupts=True,
            erased=True,
        ),
        Backend(
            "remote",
            "a namespace of a --remote",
            ("remote", "remote_nsid", "shared_ok", "take_over"),
            requires=("remote", "remote_nsid"),
            needs="a remote and the number of a namespace there",
        ),
        Backend(
            "rbd",
            "an image in a Ceph --cluster",
            ("size", "cluster", "pool_name", "image", "create", "owned", "snapshot_of", "clone_of", "inflated"),
            requires=("cluster", "pool_name"),
            needs="a cluster and the name of a pool there (--pool-name)",
            grows=True,
            interrupts=True,
        ),
        Backend("raid1", "a mirror of each --member", **_MEMBERS | {"takes": ("members", "stale")}),  # type: ignore[arg-type]
        Backend("concat", "each --member, one after the other", **_MEMBERS),  # type: ignore[arg-type]
        Backend(
            "crypt",
            "a --base that holds it encrypted",
            ("base", "key_file", "key_command", "key_check"),
            erased=True,
            **_BASE,  # type: ignore[arg-type]
        ),
        Backend("delay", "a --base made slower, for tests", ("base", "latency_us"), **_BASE),  # type: ignore[arg-type]
        Backend("error", "a --base that can be made to fail, for tests", ("base",), **_BASE, interrupts=True),  # type: ignore[arg-type]
    )
}


_OPTIONS = {
    "remote_nsid": "--nsid",
    "latency_us": "--latency-us",
    "members": "--member",
    "pool_name": "--pool-name",
    "shared_ok": "--shared-ok",
    "take_over": "--take-over",
}
"""Of the command line, where they are written otherwise than the fields."""


def _spoken(field: str) -> str:
    """As a specification and the command line have it."""
    return f"{field} ({_OPTIONS[field]})" if field in _OPTIONS else field


def check_declared(volume: Volume) -> str:
    """Why a volume cannot be declared so; empty when it can."""
    backend = BACKENDS[volume.backend]
    for other in BACKENDS.values():
        for field in other.takes:
            if field not in backend.takes and getattr(volume, field):
                whose = ", ".join(backend.name for backend in BACKENDS.values() if field in backend.takes)
                return f"{_spoken(field)} is for {whose}; this is {backend.article} {backend.name} volume: leave it out"
    if volume.snapshot_of and (volume.thin or volume.clone_of):
        return "a snapshot takes no thin and no clone_of"
    if volume.create and (volume.snapshot_of or volume.clone_of):
        return "a snapshot and a clone take no create: they are always made"
    if volume.shared_ok and volume.take_over:
        return "what others may write to is taken from nobody: leave take_over (--take-over) out"
    if volume.key_file and volume.key_command:
        return "its key comes from a key_file or a key_command, not from both"
    if volume.key_file and not volume.key_file.startswith("/"):
        return f"key_file {volume.key_file}: give an absolute path"
    if volume.key_check and not (volume.key_file or volume.key_command):
        return "a key_check goes with a key_file or a key_command"
    if volume.inflated and not volume.clone_of:
        return "it is no clone, so that there is nothing to inflate"
    return ""
