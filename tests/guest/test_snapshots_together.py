"""Snapshots of all disks of a guest at one moment, while it writes to one after the other, and does not notice."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from ceph_world import cluster_of, image

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.model.change import Change
from nvmuser.model.objects import AnyObject, Controller, Namespace, Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.supervisor import control

pytestmark = pytest.mark.matrix

NAMES = ("one", "two", "three")
IMAGES = ("one", "three")
"""Of the volumes, those that are in Ceph in one of the cases."""


def objects(in_ceph: tuple[str, ...]) -> tuple[AnyObject, ...]:
    local = [Volume(name, "lvol", pool="p", size=4 * MIB) for name in NAMES if name not in in_ceph]
    images = [image(name, size=4 * MIB, create=True) for name in in_ceph]
    pool = (Volume("disk", size=128 * MIB), Pool("p", base="disk", cluster_size=MIB))
    return (*pool, *local, *images, Controller("x", tuple(map(Namespace, NAMES))))


FIND = """disk() { grep -lx $1 /sys/block/nvme0n*/nsid | cut -d/ -f4; }"""
"""Linux numbers namespaces as it finds them, several at the same time."""
WRITE = """(i=1; while [ ! -e /tmp/stop ]; do
  for nsid in 1 2 3; do
    printf '%-512d' $i | dd of=/dev/$(disk $nsid) oflag=direct bs=512 2> /tmp/dd || cat /tmp/dd >> /tmp/bad
  done
  echo $i > /tmp/written; i=$((i+1))
done; touch /tmp/stopped) > /dev/null 2>&1 &"""
MORE = """n=$(($(cat /tmp/written) + 1))
for i in $(seq 300); do [ $(cat /tmp/written) -gt $n ] && exit; sleep 0.1; done; exit 1"""
STOP = "touch /tmp/stop; for i in $(seq 300); do [ -e /tmp/stopped ] && break; sleep 0.1; done; cat /tmp/bad; exit 0"
READ = """for i in $(seq 300); do [ -b "/dev/$(disk {0})" ] && break; sleep 0.1; done
dd if=/dev/$(disk {0}) iflag=direct bs=512 count=1 2> /dev/null"""
GONE = 'for i in $(seq 300); do [ -n "$(disk 4)" ] || exit 0; sleep 0.1; done; exit 1'


@pytest.fixture(params=["pool", "pool-and-ceph"])
async def in_ceph(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """Which volumes are; the cluster is declared before the target starts."""
    if request.param == "pool":
        return ()
    ceph = request.getfixturevalue("ceph")
    with contextlib.closing(Engine(StateDir(tmp_path / "s"))) as engine:
        await engine.change(Change(create=(cluster_of(ceph),)))
    return IMAGES


async def test_a_guest_does_not_notice(tmp_path: Path, in_ceph: tuple[str, ...]) -> None:
    async with Deployment.start(tmp_path / "s") as deployment:
        state = deployment.state
        assert (await control.submit(state, Change(create=objects(in_ceph)))).problems == ()
        async with launch(GuestSpec(memory=512 * MIB, sockets=(state.socket("x"),)), tmp_path / "guest") as guest:

            async def run(command: str) -> str:
                result = await guest.run(f"{FIND}; {command}", timeout=100, check=True)
                return result.stdout.decode()

            await run(f"echo 0 > /tmp/written; touch /tmp/bad; {WRITE}")
            for time in range(5):
                await run(MORE)
                await control.snapshot_together(state, "x", f"s{time}")
            await run(MORE)
            assert await run(STOP) == ""
            if not in_ceph:  # whose driver may reset its controller, and sends again what was in flight
                assert await run("dmesg | grep -c 'resetting controller' || true") == "0\n"
            x, before = control.load(state).controller("x"), 0
            for time in range(5):
                shown = tuple(Namespace(f"{name}-s{time}", nsid) for nsid, name in enumerate(NAMES, 4))
                await control.submit(state, Change(update=(replace(x, namespaces=(*x.namespaces, *shown)),)))
                found = [int(await run(READ.format(nsid))) for nsid in (4, 5, 6)]
                assert found == sorted(found, reverse=True)
                assert found[0] - found[-1] <= 1
                assert found[-1] > before
                before = found[0]
                await control.submit(state, Change(update=(x,), force=True))
                await run(GONE)
