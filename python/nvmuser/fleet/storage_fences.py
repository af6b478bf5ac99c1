"""The fences that there are: images in Ceph by the holder of their exclusive lock, namespaces of remotes by their
reservation.

A record names a host in a way that its later processes share, since a host restarts its target without asking etcd: of
a remote, the half of the host identifier that all of them have; of Ceph, their addresses as they become known, of which
the lock's holder shares the host's part.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from nvmuser.ceph import images
from nvmuser.ceph.images import Image
from nvmuser.errors import ConflictError, NotFoundError, SetupError
from nvmuser.fleet.fences import Fences, Find, Recorded
from nvmuser.hostfs import host_identity, reservation_keys
from nvmuser.hostfs.fences import Journal
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.peers import Peers

_HOST = re.compile(r"(?:v[12]:)?([^\[\],:]+):\d+/\d+")
"""In the address of a client, as a lock, a monitor and the client itself write it."""


class LockFence:
    """Images in Ceph: who holds the exclusive lock is put on the cluster's blocklist, and the lock is broken.

    :param desired: what is wanted on this host.
    """

    kind = "rbd"

    def __init__(self, state: StateDir, host: str, desired: Callable[[], Desired]) -> None:
        self._journal = Journal(state.fences)
        self._host = host
        self._desired = desired

    def applies(self, volume: Volume) -> bool:
        """Whether it is an image that is written to."""
        return volume.backend == "rbd" and not volume.snapshot_of

    def choose(self, volume: Volume) -> Recorded:
        """With the addresses of our connections to the cluster. While there is none, `Ownership.connecting` records it
        later, and still before the image is opened.

        :raises SetupError: the journal of fences cannot be read.
        """
        known = " ".join(self._mine(volume))
        return {"kind": self.kind, "host": self._host, "cluster": volume.cluster, "address": known}

    def _mine(self, volume: Volume) -> list[str]:
        cluster = self._desired().entries.get(Key(Cluster.kind, volume.cluster))
        if cluster is None or not isinstance(cluster.object, Cluster):
            return []
        return self._journal.addresses(cluster.object.in_spdk, alive=True)

    async def shut_out(self, volume: Volume, recorded: Sequence[Recorded], find: Find) -> None:
        """Keep the lock's holder out.

        :raises ConflictError: it is held by somebody whom no record names.
        :raises NvmuserError: the cluster does not answer, or it is not certain.
        """
        cluster = find(Key(Cluster.kind, volume.cluster))
        if not isinstance(cluster, Cluster):
            raise NotFoundError(f"volume {volume.name}: there is no cluster {volume.cluster}")
        image = replace(volume, image=volume.image or volume.name)
        await asyncio.to_thread(self._shut_out, cluster, image, recorded)

    def opened(self, volume: Volume) -> None:
        """Nothing is kept for it."""

    def _shut_out(self, cluster: Cluster, volume: Volume, recorded: Sequence[Recorded]) -> None:
        found, mine = images.look_at(cluster, [volume])[volume], self._mine(volume)
        if not isinstance(found, Image):
            raise images.explained(found, cluster, volume)
        if not (holders := _others(found, mine)):
            return
        theirs = [one for one in recorded if one.get("kind") == self.kind and one["host"] != self._host]
        texts = [one.get("address", "") for one in theirs]
        hosts = {host for text in texts for host in _HOST.findall(text)}
        strangers = [one for one in holders if not hosts & set(_HOST.findall(one))]
        if strangers and all(texts):
            raise ConflictError(
                f"image {images.named(volume)}: locked by {', '.join(strangers)}, which is none of the fleet's hosts "
                "that may have it open; `nvmuser volume seize` on a host that has the volume keeps that out"
            )
        _, after = images.fence(cluster, holders, [volume])
        left = after[volume]
        if not isinstance(left, Image) or _others(left, mine):
            raise SetupError(f"image {images.named(volume)}: somebody holds its lock again; try again")


def _others(image: Image, mine: Sequence[str]) -> list[str]:
    ours = image.held_by(mine)
    return [] if ours else [address for _, address in image.lockers]


class ReservationFence:
    """Namespaces of remotes: this host's target preempts and aborts their holder when it opens the volume."""

    kind = "nvme"

    def __init__(self, state: StateDir, host: str, peers: Peers) -> None:
        self._state = state
        self._host = host
        self._peers = peers

    def applies(self, volume: Volume) -> bool:
        """Whether a reservation is taken. Where the namespace offers none, opening it is refused."""
        return volume.backend == "remote" and not volume.shared_ok

    def choose(self, volume: Volume) -> Recorded:
        """With what all processes of this installation have in common.

        :raises NvmuserError: who we are cannot be read.
        """
        common = reservation_keys.host_in(host_identity.load(self._state).id)
        return {"kind": self.kind, "host": self._host, "id": common}

    async def shut_out(self, volume: Volume, recorded: Sequence[Recorded], find: Find) -> None:
        """Have the engine do so when it opens the volume: the holder loses the reservation, and all of its I/O that is
        in flight has ended, before anything is written here."""
        found = {one["id"] for one in recorded if one.get("kind") == self.kind and one["host"] != self._host}
        self._peers.predecessors[volume.uuid] = frozenset(found)

    def opened(self, volume: Volume) -> None:
        """From now on nobody is a predecessor."""
        self._peers.predecessors.pop(volume.uuid, None)


def fences_of(state: StateDir, host: str, desired: Callable[[], Desired], peers: Peers | None = None) -> Fences:
    """All that a host knows.

    :param peers: of the engine that opens volumes; without, nobody is shut out by these.
    """
    return Fences(LockFence(state, host, desired), ReservationFence(state, host, peers or Peers()))
