"""A guest whose disks are a remote's namespace, by two paths, and an encrypted file: targets killed, paths cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from bare_target import TargetFactory
from world import DISKS, World, kill

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.cli import sealed
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.rpc import Client

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.matrix]

NQN = "nqn.2026-11.org.example:far"
NAMESPACE = f"nvmuser-far-{os.getpid()}"
PATHS = (("nvmfar0", "10.91.0"), ("nvmfar1", "10.91.1"))
"""Our ends of two networks, and their first three octets."""
KILLS = 20
CUT_S = 30.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def networks() -> Iterator[None]:
    """Two, to a network namespace in which the store is."""
    if os.geteuid() != 0:
        pytest.skip("only root makes network namespaces")
    ip("netns", "add", NAMESPACE)
    try:
        for device, net in PATHS:
            ip("link", "add", device, "type", "veth", "peer", "name", device, "netns", NAMESPACE)
            ip("addr", "add", f"{net}.1/24", "dev", device)
            ip("link", "set", device, "up")
            ip("-n", NAMESPACE, "addr", "add", f"{net}.2/24", "dev", device)
            ip("-n", NAMESPACE, "link", "set", device, "up")
        yield
    finally:
        for device, _ in PATHS:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "del", device)
        ip("netns", "del", NAMESPACE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, networks: None) -> AsyncIterator[World]:
    root = tmp_path_factory.mktemp("r")
    factory = TargetFactory(root)
    far = factory.start("far", within=("ip", "netns", "exec", NAMESPACE))
    try:
        async with await Client.connect(far.rpc_socket) as rpc:
            await _serve(rpc, root / "store")
        async with Deployment.start(root / "s") as deployment:
            remote = Remote("far", nqn=NQN, paths=tuple(RemotePath(f"{net}.2") for _, net in PATHS))
            file = {"size": 64 * MIB, "block_size": 512, "backend": "file", "volatile": False}
            volumes = (Volume(DISKS[0], "remote", remote="far", remote_nsid=1),)
            volumes += sealed.pair(DISKS[1], {**file, "key_file": "", "key_command": ""})
            controllers = tuple(Controller(name, (Namespace(name),)) for name in DISKS)
            change = Change(create=(remote, *volumes, *controllers))
            await deployment.control.call("change", {"change": change.to_json()})
            sockets = tuple(deployment.state.socket(name) for name in DISKS)
            async with launch(GuestSpec(cpus=2, memory=512 * MIB, sockets=sockets), root / "guest") as guest:
                yield World(deployment, guest, guest.boot_id)
    finally:
        factory.end()


async def _serve(rpc: Client, store: Path) -> None:
    store.write_bytes(bytes(64 * MIB))
    await rpc.call("nvmf_create_transport", {"trtype": "TCP"})
    await rpc.call("bdev_aio_create", {"name": "store", "filename": str(store), "block_size": 512})
    await rpc.call("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "serial_number": "FAR"})
    await rpc.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "store"}})
    for _, net in PATHS:
        where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": f"{net}.2", "trsvcid": "4420"}
        await rpc.call("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": where})


async def connected(world: World) -> list[bool]:
    """Of each path, as `nvmuser status` has it."""
    drift: dict[str, Any] = await world.deployment.control.call("drift")
    return [way["connected"] for way in sorted(drift["remotes"], key=lambda way: str(way["address"]))]


async def until(world: World, wanted: list[bool]) -> None:
    async with asyncio.timeout(60):
        while await connected(world) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_the_target_is_killed_twenty_times(world: World) -> None:
    async def strike() -> None:
        before = await world.status()
        kill(before, "target")
        await world.recovered(before)

    for _ in range(KILLS):
        await world.survives(strike)
    print(f"longest stall {(await world.status())['longest_stall_s']} s")


async def test_both_paths_are_cut_for_half_a_minute(world: World) -> None:
    async def strike() -> None:
        for device, _ in PATHS:
            ip("link", "set", device, "down")
        cut = asyncio.get_running_loop().time()
        await until(world, [False, False])
        await asyncio.sleep(max(0.0, cut + CUT_S - asyncio.get_running_loop().time()))
        for device, _ in PATHS:
            ip("link", "set", device, "up")
        await until(world, [True, True])

    await world.survives(strike)


async def test_one_path_is_cut_for_ever(world: World) -> None:
    async def strike() -> None:
        ip("link", "set", PATHS[0][0], "down")
        await until(world, [False, True])

    await world.survives(strike)
    # And a successor of the target does with the one that is left.
    before = await world.status()
    kill(before, "target")
    await world.recovered(before)
    await world.survives(lambda: asyncio.sleep(0))
