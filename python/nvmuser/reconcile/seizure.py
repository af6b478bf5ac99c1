"""Images in Ceph taken from who has them locked: a person says so. It blocks."""

from __future__ import annotations

from nvmuser.ceph import images
from nvmuser.ceph.images import Image
from nvmuser.errors import ConflictError, UsageError
from nvmuser.hostfs.fences import Journal
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Volume
from nvmuser.paths import StateDir


def seize(state: StateDir, volume: Volume, desired: Desired) -> list[str]:
    """Keep out the client that has a volume's image locked. Returns their addresses; none where nobody has.

    :raises ConflictError: it is a target of ours that has it.
    :raises NvmuserError: it is not certain that they are kept out.
    """
    if not volume.cluster:
        raise UsageError(f"volume {volume.name}: only images in Ceph can be taken from another host")
    cluster = desired.get(Key(Cluster.kind, volume.cluster))
    assert isinstance(cluster, Cluster)
    image = images.look_at(cluster, [volume])[volume]
    if not isinstance(image, Image):
        raise images.explained(image, cluster, volume)
    if image.held_by(Journal(state.fences).addresses(cluster.in_spdk, alive=True)):
        raise ConflictError(f"volume {volume.name}: a target of this installation has it open")
    holders = [address for _, address in image.lockers]
    if holders:
        images.fence(cluster, holders, [volume])
    return holders
