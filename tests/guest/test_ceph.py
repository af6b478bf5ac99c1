"""A guest whose system is on an image in a real Ceph."""

from __future__ import annotations

import contextlib

import pytest
from bootdisk import MARK, write_bootdisk
from ceph_world import cluster_of, image
from guests import garbage

from nvmuser.bench.measure.ceph_cluster import POOL, CephCluster
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine


@pytest.mark.matrix
async def test_a_guest_boots_from_an_image(ceph: CephCluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("b")
    write_bootdisk(root / "disk.raw", root)
    ceph.run("rbd", "import", "--no-progress", root / "disk.raw", f"{POOL}/system", deadline=120)
    with contextlib.closing(Engine(StateDir(root / "s"))) as engine:
        await engine.change(Change(create=(cluster_of(ceph),)))
    async with Deployment.start(root / "s") as deployment:
        change = Change(create=(image("system"), Controller("system", namespaces=(Namespace("system"),))))
        await deployment.control.call("change", {"change": change.to_json()}, timeout=60)
        socket = deployment.state.socket("system")
        spec = GuestSpec(memory=512 * MIB, sockets=(socket,), boot_from=socket, firmware="uefi")
        async with launch(spec, root / "guest") as guest:
            assert MARK in (await guest.run("cat /proc/cmdline", check=True)).stdout.decode()
            found = await guest.run("blkid -o value -s TYPE /dev/nvme0n1", check=True)
            assert found.stdout.strip() == b"iso9660"
            assert await guest.stop(), "the guest did not shut down by itself"
        assert not garbage(deployment.state.logs / "target.log")
