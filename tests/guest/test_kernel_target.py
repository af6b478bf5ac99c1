"""A remote that Linux's own NVMe-oF target serves, in a guest: Debian's kernel, and a newer one with reservations."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from bare_target import TargetFactory
from kernels import boot_arguments
from remote_pair import NQN, free_port

from nvmuser import initiator
from nvmuser.errors import NvmeStatusError, TargetError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.hostfs import host_identity
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.matrix]

MODULES = ("nvmet", "nvmet-tcp", "virtio_net")
SERVE = f"""
set -e
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
modprobe nvmet-tcp
truncate -s 64M /tmp/disk
cd /sys/kernel/config/nvmet
mkdir subsystems/{NQN} ports/1
echo 0 > subsystems/{NQN}/attr_allow_any_host
mkdir subsystems/{NQN}/namespaces/1
cd subsystems/{NQN}/namespaces/1
printf /tmp/disk > device_path
echo 1 > buffered_io
[ ! -e resv_enable ] || echo 1 > resv_enable
echo 1 > enable
cd ../../../../ports/1
echo tcp > addr_trtype; echo ipv4 > addr_adrfam; echo 10.0.2.15 > addr_traddr; echo 4420 > addr_trsvcid
ln -s ../../subsystems/{NQN} subsystems/
"""
ADMIT = f"""
cd /sys/kernel/config/nvmet; mkdir hosts/{{0}}
ln -s /sys/kernel/config/nvmet/hosts/{{0}} subsystems/{NQN}/allowed_hosts/
"""
DIGEST = "dd if=/tmp/disk bs=4096 count={0} 2> /dev/null | sha256sum"


@dataclass
class Store:
    """The guest that serves, and where it is reached."""

    guest: Guest
    port: int
    reserves: bool
    """Its kernel knows reservations."""

    def declaration(self, controller: str, **fields: object) -> Change:
        remote = Remote("far", nqn=NQN, paths=(RemotePath("127.0.0.1", self.port),), keep_alive_s=5)
        disk = Volume("disk", "remote", remote="far", remote_nsid=1, **fields)  # type: ignore[arg-type]
        return Change(create=(remote, disk, Controller(controller, (Namespace("disk"),))))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["trixie", "trixie-backports"])
async def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    root, port = tmp_path_factory.mktemp("k"), free_port()
    net = (f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:4420", "virtio-net-pci,netdev=net")
    arguments = (*boot_arguments(request.param, MODULES, root), "-netdev", net[0], "-device", net[1])
    async with launch(GuestSpec(memory=512 * MIB, qemu_args=arguments), root / "guest") as guest:
        await guest.run(SERVE, check=True)
        found = await guest.run(f"cat /sys/kernel/config/nvmet/subsystems/{NQN}/namespaces/1/resv_enable")
        yield Store(guest, port, found.stdout.strip() == b"1")


@dataclass
class Near:
    """An installation that uses it."""

    engine: Engine
    state: StateDir

    def write(self, controller: str, block: int, data: bytes) -> None:
        with initiator.connect(self.state.target_dir(controller)) as host, host.queue(4, timeout=60) as queue:
            queue.write(host.namespace(1), block, data).wait()


@pytest_asyncio.fixture(loop_scope="module")
async def near(tmp_path: Path, target_factory: TargetFactory) -> AsyncIterator[Near]:
    async with await Client.connect(target_factory.start("near", polled=True).rpc_socket) as rpc:
        state = StateDir(tmp_path / "st")
        engine = Engine(state, rpc)
        yield Near(engine, state)
        gone = tuple(Key(kind, name) for kind, name in (("controller", "x"), ("volume", "disk"), ("remote", "far")))
        await engine.change(Change(delete=gone))
        engine.close()


async def attached(store: Store, near: Near) -> None:
    """Have it admit us, and its namespace as volume disk behind controller x."""
    await store.guest.run(ADMIT.format(host_identity.load(near.state).nqn), check=True)
    outcome = await near.engine.change(store.declaration("x", shared_ok=not store.reserves))
    assert outcome.problems == ()
    assert (await near.engine.reconcile()).calls == 0


async def test_it_admits_us_by_our_name_and_has_what_a_host_writes(store: Store, near: Near) -> None:
    with pytest.raises(TargetError, match="it does not admit this host: have it admit"):
        await near.engine.change(store.declaration("x", shared_ok=True))
    await attached(store, near)
    data = os.urandom(MIB)
    await asyncio.to_thread(near.write, "x", 0, data)
    found = await store.guest.run(DIGEST.format(MIB // 4096), check=True)
    assert found.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_a_path_that_is_cut_is_noticed_and_what_was_written_meanwhile_lands(store: Store, near: Near) -> None:
    """Cut in silence: the connection stays, and what is sent is acknowledged, but nothing answers any more."""
    await attached(store, near)
    data = os.urandom(4096)
    with initiator.connect(near.state.target_dir("x")) as host, host.queue(4, timeout=180) as queue:

        def write() -> None:
            queue.write(host.namespace(1), 0, data).wait()

        await asyncio.to_thread(write)
        await store.guest.run("ip link set eth0 down", check=True)
        data = os.urandom(4096)
        writing = asyncio.create_task(asyncio.to_thread(write))
        async with asyncio.timeout(120):
            while any(way.connected for way in (await near.engine.status()).remotes):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert not writing.done()
        await store.guest.run("ip link set eth0 up", check=True)
        await writing
    found = await store.guest.run(DIGEST.format(1), check=True)
    assert found.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_one_writer_or_a_clear_word(
    store: Store, near: Near, tmp_path: Path, target_factory: TargetFactory
) -> None:
    if not store.reserves:
        await store.guest.run(ADMIT.format(host_identity.load(near.state).nqn), check=True)
        with pytest.raises(TargetError, match="offers no reservations for it: --shared-ok accepts"):
            await near.engine.change(store.declaration("x"))
        return
    await attached(store, near)
    state = StateDir(tmp_path / "b")
    async with await Client.connect(target_factory.start("second", polled=True).rpc_socket) as rpc:
        other = Engine(state, rpc)
        await store.guest.run(ADMIT.format(host_identity.load(state).nqn), check=True)
        with pytest.raises(TargetError) as caught:
            await other.change(store.declaration("y"))
        said = str(caught.value)
        print(said)
        assert host_identity.load(near.state).id[:18] in said
        key = said.partition("--take-over ")[2].split()[0]
        assert (await other.change(store.declaration("y", take_over=key))).problems == ()
        await asyncio.to_thread(Near(other, state).write, "y", 0, b"b" * 4096)
        with pytest.raises(NvmeStatusError) as late:
            await asyncio.to_thread(near.write, "x", 0, b"a" * 4096)
        assert (late.value.status_type, late.value.code) == (0, 0x83)
        other.close()
