"""Images in Ceph: looked at, made, grown, removed, and taken from who holds them.

Owns the questions to `worker`, and what its answers mean in words. It blocks: call it in a thread. What is wanted is
decided by its callers.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nvmuser.ceph.asking import AWAY, DEADLINE_S, DENIED, Act, Asker, ask, error_of
from nvmuser.ceph.worker import same_client
from nvmuser.errors import AccessError, ConflictError, NotFoundError, NvmuserError, SetupError, UsageError
from nvmuser.model.objects import Cluster, Volume
from nvmuser.model.sizes import format_size

_HEALTH_S = 2
"""That monitors have to say how the cluster fares."""


@dataclass(frozen=True)
class Image:
    """As the cluster has it."""

    size: int
    lockable: bool
    """It has the feature exclusive-lock."""
    lockers: tuple[tuple[str, str], ...]
    """Client and address of the holder of its lock."""
    snapshots: tuple[str, ...]
    shared: int = 0
    """Bytes that it may still share with the snapshot that it is a clone of."""

    @property
    def holders(self) -> str:
        """Who has it open, in words."""
        return ", ".join(f"{address} ({client})" for client, address in self.lockers)

    def held_by(self, addresses: Sequence[str]) -> list[str]:
        """Which of these addresses hold it."""
        return [one for one in addresses if any(same_client(one, address) for _, address in self.lockers)]


def named(volume: Volume) -> str:
    """As `rbd` has it: pool/image, with the snapshot."""
    text = f"{volume.pool_name}/{volume.image}"
    return f"{text}@{volume.in_spdk}" if volume.snapshot_of else text


def explained(error: OSError, cluster: Cluster, volume: Volume) -> NvmuserError:
    """Why something could not be done with a volume's image, in words."""
    what, who = f"image {named(volume)}", f"client.{cluster.user}"
    if error.errno == errno.ENOENT and error.filename == "rados_ioctx_create":
        return NotFoundError(f"cluster {cluster.name} has no pool {volume.pool_name}")
    if error.errno == errno.ENOENT:
        return NotFoundError(f"no such image in cluster {cluster.name}: {named(volume)}")
    if error.errno in DENIED:
        return AccessError(
            f"{what}: {who} may not: it needs `mon 'profile rbd' osd 'profile rbd pool={volume.pool_name}'`"
        )
    if error.errno in AWAY:
        return SetupError(f"{what}: the OSDs of cluster {cluster.name} do not answer")
    if error.errno == errno.EBUSY:
        return ConflictError(f"{what}: in use: a client has it open, or it has snapshots (`rbd status`, `rbd snap ls`)")
    if error.errno == errno.EROFS:
        return ConflictError(f"{what}: locked by another client (`rbd lock ls`)")
    return SetupError(f"{what}: {error.strerror} ({error.filename})")


def away(cluster: Cluster) -> str:
    """What of a cluster does not answer, in words; empty when nothing is away.

    :raises AccessError: the cluster does not admit the user.
    """
    try:
        (found,) = ask(cluster, [{"act": "health"}], patience=_HEALTH_S)
    except SetupError as error:
        return str(error)
    if isinstance(found, OSError):
        return f"{cluster.key.words}: {found.strerror}"
    up, known = found["num_up_osds"], found["num_osds"]
    return f"{cluster.key.words}: {known - up} of {known} OSDs are down: I/O to them waits" if up < known else ""


def look_at(cluster: Cluster, volumes: Sequence[Volume], ask: Asker = ask) -> dict[Volume, Image | OSError]:
    """What the cluster has of each volume's image.

    :param ask: by what the cluster is asked.
    :raises SetupError: see `ask`; likewise AccessError.
    """
    return _looked(volumes, ask(cluster, [_about(volume, "look") for volume in volumes]))


def _looked(volumes: Sequence[Volume], answers: Sequence[Any]) -> dict[Volume, Image | OSError]:
    return {
        volume: found if isinstance(found, OSError) else _image(found)
        for volume, found in zip(volumes, answers, strict=True)
    }


def _image(data: Mapping[str, Any]) -> Image:
    lockers = tuple((client, address) for client, address in data["lockers"])
    return Image(data["size"], data["lockable"], lockers, tuple(data["snapshots"]), data["shared"])


def _about(volume: Volume, act: str, **more: Any) -> Act:
    return {"act": act, "pool": volume.pool_name, "image": volume.image} | more


def do(cluster: Cluster, volume: Volume, act: Act, asker: Asker | None = None) -> Any:
    """One thing to a volume's image.

    :param asker: by what the cluster is asked; None: by a process of its own, which may take as long as it takes.
    :raises NvmuserError: why not, in words.
    """
    deadline = None if act["act"] in ("remove", "flatten", "snapshot") else DEADLINE_S
    (result,) = asker(cluster, [act]) if asker else ask(cluster, [act], deadline=deadline)
    if isinstance(result, OSError):
        raise explained(result, cluster, volume)
    return result


def make(cluster: Cluster, volume: Volume, of: Volume | None = None, asker: Asker | None = None) -> None:
    """Make a new volume's image, or its snapshot.

    :param of: what a snapshot or a clone is of.
    :param asker: as `do` has it.
    :raises NvmuserError: it could not be.
    """
    if volume.snapshot_of:
        act = _about(volume, "snapshot", function="rbd_snap_create", name=volume.in_spdk)
    elif of is not None:
        act = _about(of, "clone", snapshot=of.in_spdk, name=volume.image)
    else:
        act = _about(volume, "create", size=volume.size)
    do(cluster, volume, act, asker)


def grow(cluster: Cluster, volume: Volume) -> None:
    """To the size that is wanted; the holder of the lock does it. A target that has it open sees it.

    :raises NvmuserError: it could not be.
    """
    do(cluster, volume, _about(volume, "resize", size=volume.size))


def remove(cluster: Cluster, volume: Volume) -> None:
    """Remove an image that we made, or a snapshot. Nothing happens when it is not there any more.

    :raises NvmuserError: it could not be.
    """
    act = _about(volume, "remove")
    if volume.snapshot_of:
        act = _about(volume, "snapshot", function="rbd_snap_remove", name=volume.in_spdk)
    try:
        do(cluster, volume, act)
    except NotFoundError:
        return


def roll_back(cluster: Cluster, volume: Volume, snapshot: str) -> None:
    """Make an image what a snapshot of it is. Nobody may have it open.

    :raises NvmuserError: it could not be.
    """
    do(cluster, volume, _about(volume, "snapshot", function="rbd_snap_rollback", name=snapshot))


def flatten(cluster: Cluster, volume: Volume) -> None:
    """Make a clone independent of its snapshot.

    :raises NvmuserError: it could not be.
    """
    do(cluster, volume, _about(volume, "flatten"))


def fence(
    cluster: Cluster, addresses: Sequence[str], volumes: Sequence[Volume], ask: Asker = ask
) -> tuple[list[str], dict[Volume, Image | OSError]]:
    """Keep those of these clients out of the cluster, for 30 days, that hold a lock on an image of these volumes, and
    break it. Returns their addresses, and what the cluster has of each image then.

    :param ask: by what the cluster is asked.
    :raises NvmuserError: not all of it is certain; nothing of theirs may be opened.
    """
    act = {"act": "fence", "addresses": list(addresses), "images": [[one.pool_name, one.image] for one in volumes]}
    (found,) = ask(cluster, [act])
    if isinstance(found, OSError):
        raise SetupError(f"{cluster.key.words}: {', '.join(addresses)} could not be fenced: {found.strerror}")
    looks = [error_of(one["failure"]) if "failure" in one else one["result"] for one in found["looks"]]
    return [str(address) for address in found["fenced"]], _looked(volumes, looks)


def complete(
    cluster: Cluster, volume: Volume, image: Image | OSError, *, expected: bool = False, dead: Sequence[str] = ()
) -> Volume:
    """A declared volume with its size, and whether the image is to be made, after looking at the cluster.

    :param expected: with a guest, from another host that has the image locked until then.
    :param dead: addresses of processes of ours that have ended: their locks are broken before it is opened.
    :raises NvmuserError: it cannot be declared so.
    """
    if isinstance(image, OSError):
        if image.errno != errno.ENOENT or image.filename == "rados_ioctx_create":
            raise explained(image, cluster, volume)
        if expected or not volume.create:
            raise NotFoundError(f"{explained(image, cluster, volume)}; --create with --size makes it")
        if not volume.size:
            raise UsageError(f"image {named(volume)} does not exist: --create needs --size")
        return replace(volume, owned=True)
    if volume.size and volume.size != image.size:
        raise UsageError(
            f"image {named(volume)} has {format_size(image.size)}: leave out the size, or grow the volume later"
        )
    check_lockable(volume, image)
    if image.lockers and not expected and not image.held_by(dead):
        raise ConflictError(
            f"image {named(volume)}: locked by {image.holders}; --seize keeps that out for good, and takes it"
        )
    return replace(volume, size=image.size, owned=False)


def seizing(volume: Volume) -> str:
    """The way out for a volume that another client has locked."""
    return f"; `nvmuser volume seize {volume.name}` keeps that out for good, and takes it"


def check_lockable(volume: Volume, image: Image) -> None:
    """:raises UsageError: nobody could be kept from writing to it too."""
    if not image.lockable:
        name = named(volume)
        feature = "exclusive-lock"
        raise UsageError(f"image {name}: without the feature {feature}: `rbd feature enable {name} {feature}`")
