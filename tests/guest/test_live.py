"""What changes under a running guest: namespaces, sizes, limits, the ways to a remote, the target's profile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from bare_target import TargetFactory
from guests import APPEARS, VERIFY, fio_errors

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.model import change as changes
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import NO_LIMITS, Controller, Limits, Namespace, Remote, TargetSettings, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor import control

NQN = "nqn.2026-11.org.example:far"
SIZE = "for i in $(seq 600); do [ $(blockdev --getsize64 /dev/nvme0n1) = {size} ] && exit 0; usleep 50000; done; exit 1"
GONE = "for i in $(seq 600); do [ -b /dev/nvme0n2 ] || exit 0; usleep 50000; done; exit 1"
READ = (
    "fio --name=r --filename=/dev/nvme0n1 --rw=randread --bs=4k --iodepth=32 --ioengine=io_uring --direct=1 "
    "--time_based --runtime=4 --output-format=json"
)


@pytest.fixture
async def deployment() -> AsyncIterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="nvl-", dir="/tmp") as root:
        async with Deployment.start(Path(root) / "s") as deployment:
            disk = (Volume("disk", size=64 * MIB), Controller("c", (Namespace("disk"),)))
            await control.submit(deployment.state, Change(create=(*disk, Volume("more", size=32 * MIB))))
            yield deployment


@pytest.fixture
async def guest(deployment: Deployment, tmp_path: Path) -> AsyncIterator[Guest]:
    spec = GuestSpec(memory=512 * MIB, sockets=(deployment.state.socket("c"),))
    async with launch(spec, tmp_path / "g") as guest:
        yield guest


def wanted(state: StateDir, key: str) -> object:
    return control.load(state).get(Key.parse(key))


async def update(state: StateDir, after: Volume | Controller) -> None:
    assert (await control.submit(state, Change(update=(after,), force=True))).problems == ()


async def attach(state: StateDir, volume: str) -> None:
    controller = wanted(state, "controller/c")
    assert isinstance(controller, Controller)
    await update(state, changes.attach(controller, volume))


async def ios(guest: Guest) -> float:
    """Reads a second."""
    output = (await guest.run(READ, timeout=120, check=True)).stdout
    return float(json.loads(output)["jobs"][0]["read"]["iops"])


async def test_namespaces_sizes_and_limits(deployment: Deployment, guest: Guest) -> None:
    state, boot = deployment.state, guest.boot_id
    await attach(state, "more")
    await guest.run(APPEARS.format(device="/dev/nvme0n2"), check=True)
    controller = wanted(state, "controller/c")
    assert isinstance(controller, Controller)
    await update(state, changes.detach(controller, "more"))
    await guest.run(GONE, check=True)

    disk = wanted(state, "volume/disk")
    assert isinstance(disk, Volume)
    disk = replace(disk, size=128 * MIB)
    await update(state, disk)
    await guest.run(SIZE.format(size=128 * MIB), check=True)
    await guest.run("dd if=/dev/zero of=/dev/nvme0n1 bs=1M seek=100 count=8 oflag=direct", check=True)

    # 4 s of fio: what SPDK lets through in its first time slices is within the 10 %.
    await update(state, replace(disk, limits=Limits(iops=1000)))
    assert await ios(guest) < 1100
    await update(state, replace(disk, limits=Limits(mbps=2)))
    assert await ios(guest) < 512 * 1.1
    await update(state, replace(disk, limits=NO_LIMITS))
    assert await ios(guest) > 1100
    assert guest.boot_id == boot


async def test_a_remote_loses_one_way_and_then_the_other(
    deployment: Deployment, guest: Guest, target_factory: TargetFactory
) -> None:
    far = target_factory.start("far")
    async with await Client.connect(far.rpc_socket) as rpc:
        await rpc.call("nvmf_create_transport", {"trtype": "TCP"})
        await rpc.call("bdev_malloc_create", {"name": "m", "num_blocks": 65536, "block_size": 512})
        await rpc.call("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "serial_number": "FAR"})
        await rpc.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "m"}})

        async def way(port: int, verb: str) -> None:
            address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
            await rpc.call(f"nvmf_subsystem_{verb}_listener", {"nqn": NQN, "listen_address": address})

        for port in (4493, 4494):
            await way(port, "add")
        remote = Remote("far", nqn=NQN, paths=(RemotePath("127.0.0.1", 4493), RemotePath("127.0.0.1", 4494)))
        volume = Volume("there", "remote", remote="far", remote_nsid=1)
        assert (await control.submit(deployment.state, Change(create=(remote, volume)))).problems == ()
        await attach(deployment.state, "there")
        await guest.run(APPEARS.format(device="/dev/nvme0n2"), check=True)

        writing = asyncio.create_task(guest.run(VERIFY.format(device="/dev/nvme0n2"), timeout=150))
        for verb, port in (("remove", 4493), ("add", 4493), ("remove", 4494), ("add", 4494)):
            await served(rpc, "m")
            await way(port, verb)
        result = await writing
    assert result.status == 0, result.stderr
    assert fio_errors(result.stdout) == (0, 8 * MIB, 8 * MIB)


async def served(rpc: Client, bdev: str) -> None:
    """Wait until so much I/O has gone through since now: what is lost is lost while it is used."""

    async def count() -> int:
        (facts,) = (await rpc.call("bdev_get_iostat", {"name": bdev}))["bdevs"]
        return int(facts["num_write_ops"]) + int(facts["num_read_ops"])

    before = await count()
    async with asyncio.timeout(60):
        while await count() < before + 16:
            pass


async def test_profiles_change_under_a_guest_that_survives_in_each(deployment: Deployment, guest: Guest) -> None:
    boot, settings = guest.boot_id, TargetSettings(profile="eco")
    for change in (Change(create=(settings,)), Change(update=(replace(settings, profile="balanced"),))):
        (problem,) = (await control.submit(deployment.state, change)).problems
        assert "takes effect with `nvmuser target restart`" in problem.message
        await deployment.control.call("restart")
        assert (await deployment.control.call("drift"))["drifted"] == []
        status = (await deployment.control.call("status"))["target"]
        assert status["profile"] == (change.create or change.update)[0].to_json()["profile"]
        writing = asyncio.create_task(guest.run(VERIFY.format(device="/dev/nvme0n1"), timeout=150))
        async with await Client.connect(deployment.state.rpc_socket) as rpc:
            await served(rpc, "disk")
        os.kill(status["pid"], signal.SIGKILL)
        result = await writing
        assert result.status == 0, result.stderr
        assert fio_errors(result.stdout) == (0, 8 * MIB, 8 * MIB)
    assert guest.boot_id == boot
