"""Whom a host shuts out of a volume that it is to have, and whom not; the storage itself is a fake here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from nvmuser.ceph import images
from nvmuser.ceph.images import Image
from nvmuser.errors import ConflictError, SetupError
from nvmuser.fleet.storage_fences import LockFence, ReservationFence
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Cluster, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.peers import Peers

VOLUME = Volume("v", "rbd", cluster="ceph", pool_name="rbd", image="v", size=1 << 20)
REMOTE = Volume("r", "remote", remote="far", remote_nsid=1, uuid="some-uuid")
HOLDER, SUCCESSOR, STRANGER = "10.0.0.1:0/11", "v1:10.0.0.1:0/12", "10.0.0.9:0/13"


class Ceph:
    """A cluster with one image."""

    def __init__(self, *lockers: str) -> None:
        self.lockers = list(lockers)
        self.fenced: list[str] = []
        self.works = True

    def look_at(self, cluster: Cluster, volumes: Sequence[Volume]) -> dict[Volume, Image]:
        lockers = tuple(("client.1", address) for address in self.lockers)
        return {volume: Image(volume.size, True, lockers, ()) for volume in volumes}

    def fence(
        self, cluster: Cluster, addresses: Sequence[str], volumes: Sequence[Volume]
    ) -> tuple[list[str], dict[Volume, Image]]:
        if self.works:
            self.lockers = [one for one in self.lockers if one not in addresses]
        self.fenced += addresses
        return list(addresses), self.look_at(cluster, volumes)


@pytest.fixture
def ceph(monkeypatch: pytest.MonkeyPatch) -> Ceph:
    found = Ceph()
    monkeypatch.setattr(images, "look_at", found.look_at)
    monkeypatch.setattr(images, "fence", found.fence)
    return found


async def shut_out(tmp_path: Path, *addresses: str) -> None:
    """As host h2 does, of h1 with these addresses."""
    fence = LockFence(StateDir(tmp_path), "h2", Desired)
    recorded = [{"kind": "rbd", "host": "h1", "cluster": "ceph", "address": one} for one in addresses]
    recorded += [{"kind": "rbd", "host": "h2", "cluster": "ceph", "address": ""}]
    await fence.shut_out(VOLUME, recorded, lambda key: Cluster("ceph"))


async def test_the_locks_holder_is_shut_out(ceph: Ceph, tmp_path: Path) -> None:
    ceph.lockers = [HOLDER]
    await shut_out(tmp_path, HOLDER)
    assert ceph.fenced == [HOLDER]


async def test_a_later_process_of_the_same_host_is_shut_out_too(ceph: Ceph, tmp_path: Path) -> None:
    ceph.lockers = [SUCCESSOR]
    await shut_out(tmp_path, HOLDER)
    assert ceph.fenced == [SUCCESSOR]


async def test_a_stranger_is_not(ceph: Ceph, tmp_path: Path) -> None:
    ceph.lockers = [STRANGER]
    with pytest.raises(ConflictError, match=r"locked by 10.0.0.9:0/13, which is none of the fleet's hosts"):
        await shut_out(tmp_path, HOLDER)
    assert ceph.fenced == []


async def test_a_host_that_died_before_its_address_was_known_held_the_lock(ceph: Ceph, tmp_path: Path) -> None:
    ceph.lockers = [HOLDER]
    await shut_out(tmp_path, "")
    assert ceph.fenced == [HOLDER]


async def test_nobody_holds_it(ceph: Ceph, tmp_path: Path) -> None:
    await shut_out(tmp_path, HOLDER)
    assert ceph.fenced == []


async def test_a_fence_that_has_no_effect_is_none(ceph: Ceph, tmp_path: Path) -> None:
    ceph.lockers, ceph.works = [HOLDER], False
    with pytest.raises(SetupError, match="somebody holds its lock again"):
        await shut_out(tmp_path, HOLDER)


async def test_a_reservation_is_taken_from_the_recorded_host_alone_and_only_meanwhile(tmp_path: Path) -> None:
    peers = Peers()
    fence = ReservationFence(StateDir(tmp_path), "h2", peers)
    mine = fence.choose(REMOTE)
    assert (mine["host"], len(mine["id"])) == ("h2", 16)
    assert fence.choose(REMOTE) == mine
    theirs = {"kind": "nvme", "host": "h1", "id": "0123456789abcdef"}
    await fence.shut_out(REMOTE, [theirs, mine], lambda key: None)
    assert peers.predecessors == {"some-uuid": frozenset(("0123456789abcdef",))}
    fence.opened(REMOTE)
    assert peers.predecessors == {}


def test_what_cannot_be_fenced(tmp_path: Path) -> None:
    lock, reservation = LockFence(StateDir(tmp_path), "h", Desired), ReservationFence(StateDir(tmp_path), "h", Peers())
    shared = Volume("s", "remote", remote="far", remote_nsid=1, shared_ok=True)
    snapshot = Volume("p", "rbd", cluster="ceph", pool_name="rbd", snapshot_of="v")
    for volume in (shared, snapshot, Volume("f", size=512)):
        assert not lock.applies(volume)
        assert not reservation.applies(volume)
