"""Volumes in Ceph that a change declares: completed by what the cluster has, before anything is recorded.

It may take seconds to learn that no monitor answers, in which nothing may be held up. It blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nvmuser.ceph import images
from nvmuser.errors import ConflictError
from nvmuser.hostfs.fences import Journal
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired, closed
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Cluster, Volume


def completed(change: Change, before: Desired, journal: Journal | None = None) -> Change:
    """With the size and the name of each new volume's image, and whether it has to be made.

    :param journal: by which locks of our own processes are known that have ended.
    :raises NvmuserError: a volume cannot be declared so.
    """
    new = {one.key: one for one in change.create}
    mine = [one for one in change.create if isinstance(one, Volume) and one.cluster and not _is_there(one, before)]
    expected = closed(change.create) if mine else frozenset()
    done: dict[Key, AnyObject] = {}
    for volume in mine:
        cluster = _find(Key(Cluster.kind, volume.cluster), new, before)
        if isinstance(cluster, Cluster):
            dead = journal.addresses(cluster.in_spdk, alive=False) if journal else ()
            done[volume.key] = _completed(_named(volume, new, before), cluster, dead, expected=volume.key in expected)
    return replace(change, create=tuple(done.get(one.key, one) for one in change.create)) if done else change


def _is_there(volume: Volume, before: Desired) -> bool:
    """It is refused, or was recorded by an earlier act."""
    return volume.key in before.entries


def _find(key: Key, new: dict[Key, AnyObject], before: Desired) -> AnyObject | None:
    entry = before.entries.get(key)
    return new.get(key) or (entry.object if entry else None)


def _named(volume: Volume, new: dict[Key, AnyObject], before: Desired) -> Volume:
    """With the name of its image: of a snapshot, what it is of."""
    source = _find(Key("volume", volume.snapshot_of), new, before) if volume.snapshot_of else None
    if isinstance(source, Volume):
        return replace(volume, image=source.image or source.name)
    return volume if volume.image else replace(volume, image=volume.name)


def _completed(volume: Volume, cluster: Cluster, dead: Sequence[str], *, expected: bool) -> Volume:
    if volume.snapshot_of:
        return replace(volume, owned=True)
    image = images.look_at(cluster, [volume])[volume]
    if volume.clone_of:
        if isinstance(image, images.Image):
            raise ConflictError(f"image {images.named(volume)} exists already: choose another name, or --image")
        return replace(volume, owned=True)
    found = images.complete(cluster, volume, image, expected=expected, dead=dead)
    # An image that its fleet has made on another host goes with the volume here too.
    return replace(found, owned=found.owned or volume.owned)
