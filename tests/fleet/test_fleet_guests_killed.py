"""Processes killed at each state of a guest that moves from host to host of a fleet: it goes on at exactly one of them,
which owns its volumes and is who the storage lets in.

Where its QEMU itself was killed, it can be started where its volumes are, and finds there what it has written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from bare_target import TargetFactory
from etcd_server import Etcd
from fleet_guest import NAME, NVMUSER, FleetGuest, a_guest
from fleet_storage import RealHost, storage_world
from fleet_world import until
from qemu.qmp import QMPClient

from nvmuser.bench.measure.ceph_cluster import CephCluster
from nvmuser.fleet.etcd.watch import Lost, Watcher
from nvmuser.fleet.journey import ARRIVED, LEFT, READY, RELEASED, WAITING, Journey
from nvmuser.fleet.keys import prefix
from nvmuser.fleet.records import decode
from nvmuser.guest.qmp import connected
from nvmuser.guest.registry import registry
from nvmuser.supervisor import control

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.matrix]

DISKS = ("r", "i")
VICTIMS = ("traveller", "supervisor", "target", "qemu")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guest(tmp_path_factory: pytest.TempPathFactory, etcd: Etcd, ceph: CephCluster) -> AsyncIterator[FleetGuest]:
    """One on two disks, with files on the first, and its fleet."""
    root = tmp_path_factory.mktemp("k")
    factory = TargetFactory(root)
    try:
        async with storage_world(root, etcd, factory, ceph) as world, a_guest(world, "h1") as guest:
            await prepare(guest)
            yield guest
    finally:
        factory.end()


async def prepare(guest: FleetGuest) -> None:
    """Files, and on their disk what they must be."""
    await guest.load.prepare()
    await guest.run("cp /tmp/sums /mnt/sums && sync")


async def entered(guest: FleetGuest, state: str) -> None:
    """Wait until a move is recorded to have come to a state."""
    async with guest.world.session() as one:
        key = one.keys.journey(DISKS[0])
        async with contextlib.aclosing(Watcher(one.client, prefix(key)).events()) as events, asyncio.timeout(90):
            async for event in events:
                item = None if isinstance(event, Lost) else event.items.get(key)
                if item and Journey.from_json(decode(key, item.value)).state == state:
                    return


def travellers(host: RealHost) -> list[int]:
    return [pid for pid in host.pids if b"nvmuser.guest.traveller" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def kill(host: RealHost, victim: str) -> None:
    """Kill one part of a host; a supervisor is started again, as by systemd."""
    if victim == "traveller":
        pids = travellers(host)
    elif victim == "qemu":
        pids = [record.pid for record in registry(host.state).list()]
    else:
        pids = [(await host.status())[victim]["pid"]]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if victim == "supervisor":
        with contextlib.suppress(ChildProcessError):
            await asyncio.to_thread(os.waitpid, pids[0], 0)  # it holds the state directory until all of it has ended
        await host.start()


async def is_over(guest: FleetGuest) -> bool:
    """Nobody has anything left to do for a move."""
    async with guest.world.session() as one:
        journeys = (await one.view()).journeys.values()
        return not any(journey.side(name) for journey in journeys for name in guest.world.hosts)


async def settled(guest: FleetGuest) -> str:
    """Wait until everything is at one host. Returns which."""
    world = guest.world
    await until(lambda: is_over(guest), 120)
    await until(lambda: world.live(*world.hosts), 30)
    await until(lambda: world.is_settled(*DISKS), 60)
    [here] = {(await world.owner(name)).host for name in DISKS}
    [there] = [name for name in world.hosts if name != here]
    await until(lambda: not control.load(world.hosts[there].state).controllers(), 30)
    assert guest.running in ([], [here])
    assert [len((await world.owner(name)).fences) for name in DISKS] == [1, 1]
    return here


async def begin(guest: FleetGuest, there: str) -> asyncio.subprocess.Process:
    state, pipe = guest.world.hosts[guest.here].state, asyncio.subprocess.PIPE
    argv = [str(NVMUSER), "--state-dir", str(state.root), "guest", "migrate", NAME, "--to", there]
    return await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe)


async def on_its_way(guest: FleetGuest, there: str, state: str) -> tuple[str, asyncio.subprocess.Process]:
    """Move it while it writes, and wait for a state. Returns its boot, and the command that moves it."""
    boot = await guest.boot_id()
    await guest.load.begin()
    coming = asyncio.create_task(entered(guest, state))
    moving = await begin(guest, there)
    await coming
    return boot, moving


async def check(guest: FleetGuest, boot: str) -> None:
    """It goes on with all that it has written and read."""
    seen = await guest.load.finish()
    assert (seen.io_errors, seen.bad_blocks, seen.memory_mismatches) == (0, 0, 0)
    assert await guest.boot_id() == boot


async def test_its_qemu_there_ends_before_it_is_known_that_all_was_sent(guest: FleetGuest) -> None:
    """It goes on where it was, where QEMU has it as one that has left."""
    world, here = guest.world, guest.here
    [there] = [name for name in world.hosts if name != here]
    boot, moving = await on_its_way(guest, there, WAITING)
    stopped = list[int]()
    async with connected(registry(world.hosts[there].state).runtime(NAME).qmp) as qmp:
        await until(lambda: says(qmp, "query-migrate", "active"), 60)
        for pid in travellers(world.hosts[here]):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        await until(lambda: says(qmp, "query-status", "paused"), 60)
    refused = asyncio.create_task(entered(guest, RELEASED))
    await kill(world.hosts[there], "qemu")
    await refused
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    _, err = await moving.communicate()
    assert (moving.returncode, b"its QEMU has ended" in err) == (1, True), err
    assert await settled(guest) == here
    await check(guest, boot)


async def says(qmp: QMPClient, command: str, status: str) -> bool:
    found = await qmp.execute(command)
    return isinstance(found, dict) and found.get("status") == status


@pytest.mark.parametrize("side", ["here", "there"])
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("state", [READY, WAITING, LEFT, ARRIVED])
async def test_killed_at_each_state(guest: FleetGuest, state: str, victim: str, side: str) -> None:
    world, here = guest.world, guest.here
    [there] = [name for name in world.hosts if name != here]
    boot, moving = await on_its_way(guest, there, state)
    await kill(world.hosts[here if side == "here" else there], victim)
    async with asyncio.timeout(120):
        out, err = await moving.communicate()
    assert b"Traceback" not in err, (out, err)
    place = await settled(guest)
    if moving.returncode == 0:
        assert place == there
    if guest.running:
        await check(guest, boot)
    else:
        assert victim == "qemu"
        await guest.start(place)
        await guest.run("mkdir -p /mnt && mount /dev/nvme0n1 /mnt && cd /mnt && md5sum -c sums && cd / && umount /mnt")
        await prepare(guest)
