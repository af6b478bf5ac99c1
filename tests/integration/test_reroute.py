"""A remote by name that moves while a target is connected to it: followed, with a host that goes on reading."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from bare_target import TargetFactory

from nvmuser import initiator
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor import control, daemon

NQN = "nqn.2026-11.org.example:far"
NAME = "store.nvmuser.test"
BLOCK = 4096
PATIENCE_S = 60.0


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text(f"127.0.0.1 localhost\n127.0.0.1 {NAME}\n")
    return path


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory, hosts: Path) -> Iterator[StateDir]:
    """A deployment whose processes have these /etc/hosts."""
    state = StateDir(tmp_path_factory.mktemp("s"))
    start = "from nvmuser.cli.main import main; main()"
    script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    words = [sys.executable, "-c", start, "--state-dir", str(state.root), "target", "start", "--no-hugepages"]
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    subprocess.run([*unshare, *words], check=True, stdout=subprocess.DEVNULL)
    try:
        yield state
    finally:
        asyncio.run(daemon.stop(state))


@pytest.fixture
async def far(target_factory: TargetFactory) -> AsyncIterator[tuple[Client, int]]:
    """Another target with a disk, at 127.0.0.1; and its port."""
    target = target_factory.start("far")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    async with await Client.connect(target.rpc_socket) as rpc:
        await rpc.call("nvmf_create_transport", {"trtype": "TCP"})
        await rpc.call("bdev_malloc_create", {"name": "m", "num_blocks": 65536, "block_size": 512})
        await rpc.call("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "serial_number": "FAR"})
        await rpc.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "m"}})
        await rpc.call("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": where("127.0.0.1", port)})
        yield rpc, port


def where(address: str, port: int) -> dict[str, str]:
    return {"trtype": "TCP", "adrfam": "IPv4", "traddr": address, "trsvcid": str(port)}


async def way(state: StateDir) -> dict[str, Any]:
    drift = await control.ask(state, "drift")
    return dict(drift["remotes"][0])


async def test_a_name_that_leads_elsewhere_is_followed(state: StateDir, far: tuple[Client, int], hosts: Path) -> None:
    rpc, port = far
    remote = Remote("far", nqn=NQN, paths=(RemotePath(NAME, port),))
    disk = Volume("disk", "remote", remote="far", remote_nsid=1)
    outcome = await control.submit(state, Change(create=(remote, disk, Controller("x", (Namespace("disk"),)))))
    assert outcome.problems == ()
    assert await way(state) == {
        "remote": "far", "path": f"{NAME}:{port}", "address": "127.0.0.1", "port": port, "connected": True,
        "states": [], "keep_alive_s": 10,
    }  # fmt: skip

    def read_and_write() -> None:
        """As a guest does: each waits for as long as it takes."""
        with initiator.connect(state.guest_dir("x")) as host, host.queue(4, timeout=PATIENCE_S) as queue:
            cut.release()
            while not moved.acquire(blocking=False):
                data, back = os.urandom(BLOCK), bytearray(BLOCK)
                queue.write(host.namespace(1), 0, data).wait()
                queue.read(host.namespace(1), 0, back).wait()
                assert back == data

    cut, moved = (threading.Semaphore(0) for _ in range(2))
    reading = asyncio.ensure_future(asyncio.to_thread(read_and_write))
    assert await asyncio.to_thread(cut.acquire, timeout=PATIENCE_S)
    # Before its name is known to lead elsewhere, the disk is gone.
    await rpc.call("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": where("127.0.0.2", port)})
    await rpc.call("nvmf_subsystem_remove_listener", {"nqn": NQN, "listen_address": where("127.0.0.1", port)})
    async with asyncio.timeout(PATIENCE_S):
        while (await way(state))["connected"]:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.1)
        hosts.write_text(f"127.0.0.1 localhost\n127.0.0.2 {NAME}\n")
        while (found := await way(state))["address"] != "127.0.0.2":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert found["connected"]
    moved.release()
    await reading
    drift = await control.ask(state, "drift")
    assert (len(drift["remotes"]), drift["drifted"], drift["missing"], drift["conflicts"]) == (1, [], [], [])
