"""Volumes in Ceph as the model and the planner see them: what may be declared, what is done before SPDK's turn."""

from __future__ import annotations

import errno
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvmuser.ceph import images
from nvmuser.ceph.asking import unconnected
from nvmuser.ceph.images import Image
from nvmuser.errors import ConflictError, NvmuserError, UsageError
from nvmuser.hostfs.fences import Fence, Journal
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.objects import Cluster, Controller, Namespace, TargetSettings, Volume
from nvmuser.model.placement import places
from nvmuser.paths import StateDir
from nvmuser.reconcile import clusters
from nvmuser.reconcile.actual import Actual, Bdev
from nvmuser.reconcile.plan import plan

MIB = 1 << 20
CEPH = Cluster("ceph", conf="/etc/ceph/ceph.conf")
WEB = Volume("web", "rbd", size=MIB, cluster="ceph", pool_name="vms", image="web")


def declare(*objects: Any, desired: Desired | None = None, **change: Any) -> Desired:
    return next_desired(desired or Desired(), Change(create=objects, **change), lambda volume: volume)


def bdev(volume: Volume, **fields: Any) -> Bdev:
    return Bdev(**({"name": volume.in_spdk, "uuid": volume.uuid, "size": volume.size, "block_size": 512} | fields))


def test_one_image_is_one_volume() -> None:
    with pytest.raises(ConflictError, match="its image, vms/web of cluster ceph, is volume web's already"):
        declare(CEPH, WEB, replace(WEB, name="two"))


@pytest.mark.parametrize("field", ["pool_name", "image"])
@pytest.mark.parametrize("text", ["a/b", "a@b", "a b"])
def test_names_that_ceph_cannot_have_are_refused(field: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"its {field}, '{text}', cannot be one in Ceph"):
        replace(WEB, **{field: text})


@pytest.mark.parametrize(("field", "value"), [("user", "client.admin"), ("user", ""), ("user", "a b")])
def test_users_are_named_without_their_kind(field: str, value: str) -> None:
    with pytest.raises(UsageError, match=r"as in client\.USER"):
        replace(CEPH, **{field: value})


def test_a_cluster_is_on_every_target_with_a_volume_of_it_and_stays_while_one_is_left() -> None:
    other = replace(WEB, name="db", image="db")
    shown = [Controller(one.name, namespaces=(Namespace(one.name),)) for one in (WEB, other)]
    desired = declare(CEPH, TargetSettings("far"), WEB, other, shown[0], replace(shown[1], target="far"))
    assert places(desired)[CEPH.key] == {"spdk", "far"}
    with pytest.raises(ConflictError, match="cluster ceph: in use by volume"):
        declare(desired=desired, delete=(CEPH.key,))


def test_what_is_open_and_large_enough_asks_the_cluster_nothing() -> None:
    desired = declare(CEPH, WEB)
    web = desired.volumes()[0]
    (work,) = clusters.wanted(desired, Actual())
    assert (work.opening, work.growing) == ((web,), ())
    there = Actual(bdevs={"web": bdev(web)}, clusters={"ceph": "a"})
    assert clusters.wanted(desired, there) == []
    (work,) = clusters.wanted(desired, Actual(bdevs={"web": bdev(web, size=MIB // 2)}, clusters={"ceph": "a"}))
    assert (work.opening, work.growing) == ((), (web,))


def test_images_come_before_their_snapshots_and_those_before_clones() -> None:
    friday = replace(WEB, name="friday", size=0, snapshot_of="web")
    copy = replace(WEB, name="a-copy", size=0, image="copy", clone_of="friday")
    (work,) = clusters.wanted(declare(CEPH, copy, friday, WEB), Actual())
    assert [volume.name for volume in work.opening] == ["web", "friday", "a-copy"]


def test_nothing_is_opened_before_there_is_a_connection() -> None:
    desired = declare(CEPH, WEB)
    assert not plan(desired, Actual(transport=True), Path).calls
    (call,) = plan(desired, Actual(transport=True, clusters={"ceph": "a"}), Path).calls
    assert call.request.method == "bdev_rbd_create"
    assert call.request.params["exclusive"] is True
    assert call.request.params["rbd_name"] == "web"


def test_a_cluster_that_goes_is_left_after_its_volumes() -> None:
    desired = declare(CEPH, WEB)
    web = desired.volumes()[0]
    gone = declare(desired=desired, delete=(web.key, CEPH.key))
    calls = plan(gone, Actual(transport=True, bdevs={"web": bdev(web)}, clusters={"ceph": "a"}), Path)
    assert [[call.request.method for call in wave] for wave in calls.waves()] == [
        ["bdev_rbd_delete"],
        ["bdev_rbd_unregister_cluster"],
    ]


IMAGE = Image(MIB, True, (), ())


@pytest.mark.parametrize(
    ("volume", "image", "reason"),
    [
        (WEB, OSError(errno.ENOENT, "", "rbd_open"), "no such image in cluster ceph: vms/web; --create with --size"),
        (WEB, OSError(errno.ENOENT, "", "rados_ioctx_create"), "cluster ceph has no pool vms"),
        (WEB, OSError(errno.EPERM, "", "rbd_open"), r"client.admin may not: it needs `mon 'profile rbd' osd"),
        (WEB, OSError(errno.ETIMEDOUT, "", "rbd_open"), "the OSDs of cluster ceph do not answer"),
        (replace(WEB, size=0, create=True), OSError(errno.ENOENT, "", "rbd_open"), "--create needs --size"),
        (replace(WEB, size=2 * MIB), IMAGE, "image vms/web has 1M: leave out the size"),
        (WEB, replace(IMAGE, lockable=False), "without the feature exclusive-lock"),
        (WEB, replace(IMAGE, lockers=(("client.7", "10.0.0.1:0/7"),)), r"locked by 10.0.0.1:0/7 \(client.7\); --seize"),
    ],
)
def test_what_cannot_be_declared_says_why(volume: Volume, image: Image | OSError, reason: str) -> None:
    with pytest.raises(NvmuserError, match=reason):
        images.complete(CEPH, volume, image)


def test_an_image_gives_its_size_and_stays_somebody_elses_one_that_is_made_is_ours() -> None:
    found = images.complete(CEPH, replace(WEB, size=0, create=True), IMAGE)
    assert (found.size, found.owned) == (MIB, False)
    made = images.complete(CEPH, replace(WEB, create=True), OSError(errno.ENOENT, "", "rbd_open"))
    assert (made.size, made.owned) == (MIB, True)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ETIMEDOUT, "no monitor answers: see `mon host` in /etc/ceph/ceph.conf"),
        (errno.EACCES, "does not admit client.admin with the key in"),
        (errno.ENOENT, "no key for client.admin: see --keyring"),
    ],
)
def test_why_there_is_no_connection(number: int, reason: str) -> None:
    assert reason in str(unconnected(CEPH, number))


def test_a_lock_of_a_process_of_ours_that_has_ended_is_in_nobodys_way() -> None:
    """As where its volume was closed while the next one started: the lock is broken before the image is opened."""
    locked = Image(MIB, True, (("client.7", "127.0.0.1:0/7"),), ())
    assert images.complete(CEPH, replace(WEB, size=0), locked, dead=["127.0.0.1:0/7"]).size == MIB
    with pytest.raises(ConflictError, match=r"locked by 127\.0\.0\.1:0/7 \(client\.7\)"):
        images.complete(CEPH, replace(WEB, size=0), locked, dead=["127.0.0.1:0/8"])


async def test_what_an_ended_target_was_to_close_is_kept_from_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    fenced: list[tuple[list[str], list[str]]] = []

    def fence(cluster: Cluster, addresses: list[str], volumes: list[Volume], ask: object) -> tuple[list[str], dict]:  # type: ignore[type-arg]
        fenced.append((addresses, [volume.name for volume in volumes]))
        return addresses, {}

    monkeypatch.setattr(clusters.images, "fence", fence)
    state = StateDir(tmp_path)
    Journal(state.fences).add(Fence(CEPH.in_spdk, "127.0.0.1:0/7", ended.pid, 1, "a boot"))
    ended.wait()
    of_target = clusters.Clusters(state)
    of_target._pid = ended.pid
    of_target.lost(Desired({CEPH.key: Entry(CEPH), WEB.key: Entry(WEB, deleting=True)}))
    assert of_target._fencing
    await of_target._fencing
    assert fenced == [(["127.0.0.1:0/7"], ["web"])]
