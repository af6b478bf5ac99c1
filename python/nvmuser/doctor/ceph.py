"""Checks of Ceph, where a deployment has clusters."""

from __future__ import annotations

from collections.abc import Iterator

from nvmuser.ceph import images
from nvmuser.doctor.check import Finding
from nvmuser.errors import NvmuserError, SetupError
from nvmuser.model.objects import Cluster, Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor import control
from nvmuser.toolchain import rbd
from nvmuser.toolchain.spdk import find_spdk


def module(_state: StateDir) -> Iterator[Finding]:
    """SPDK's module for images in Ceph is built."""
    try:
        yield Finding("Ceph", True, f"librbd {rbd.librbd_version()}, {rbd.find_module(find_spdk().prefix)}")
    except SetupError as error:
        gain = "volumes in Ceph"
        yield Finding("Ceph", False, str(error).splitlines()[0], "nvmuser setup --with rbd", gain=gain)


def clusters(state: StateDir) -> Iterator[Finding]:
    """Monitors and OSDs of each cluster answer, and its images are there and not another's."""
    desired = control.load(state)
    for cluster in desired.clusters():
        volumes = [volume for volume in desired.volumes() if volume.cluster == cluster.name]
        yield from _cluster(cluster, [volume for volume in volumes if not volume.snapshot_of])


def _cluster(cluster: Cluster, volumes: list[Volume]) -> Iterator[Finding]:
    name = f"cluster {cluster.name}"
    try:
        away = images.away(cluster)
        found = images.look_at(cluster, volumes) if volumes and not away else {}
    except NvmuserError as error:
        yield Finding(name, False, str(error), "see `ceph -s`")
        return
    if away:
        yield Finding(name, False, away, "see `ceph -s`")
        return
    wrong = {v.name: str(images.explained(e, cluster, v)) for v, e in found.items() if isinstance(e, OSError)}
    for volume, text in wrong.items():
        yield Finding(f"volume {volume}", False, text, "see `rbd ls`, `ceph auth get`")
    yield Finding(name, True, f"answers; {len(found) - len(wrong)} of {len(volumes)} images are there")
