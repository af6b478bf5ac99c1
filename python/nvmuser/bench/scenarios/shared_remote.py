"""Volumes on a remote, and encrypted ones, for `bench shared`: the store is a target of our own, over TCP on this
machine."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.scenarios.verified import backing
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.supervisor.spdk import Options, Target
from nvmuser.toolchain import find_spdk

NQN = "nqn.2026-11.org.nvmuser:bench-store"
_STORE, _ADDRESS = "store", "127.0.0.1"


class Store:
    """An NVMe-oF target with one namespace on a file. Start it, and stop it."""

    def __init__(self) -> None:
        self._target: Target | None = None
        self.port = 0

    async def start(self, root: Path) -> None:
        """:param root: a directory with a short path, for the target's socket and file.

        :raises NvmuserError: the target does not start.
        """
        state = StateDir(root / "far")
        for needed in (state.run, state.logs):
            needed.mkdir(parents=True, exist_ok=True)
        options = Options(hugepages=False, profile="eco")
        self._target = await Target.start(state, find_spdk(), options, 1)
        self.port = _free_port()
        where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": _ADDRESS, "trsvcid": str(self.port)}
        file = {"name": _STORE, "filename": str(backing(root / _STORE)), "block_size": 512}
        for method, params in (
            ("nvmf_create_transport", {"trtype": "TCP"}),
            ("bdev_aio_create", file),
            ("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": True, "serial_number": "STORE"}),
            ("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": _STORE}}),
            ("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": where}),
        ):
            await self._target.rpc.call(method, params)

    async def stop(self) -> None:
        """Kill it. Nothing happens if it does not run."""
        target, self._target = self._target, None
        if target:
            await target.process.kill()
            await target.close()

    def declaration(self, name: str) -> Change:
        """Its namespace as a volume of this name, shown by a controller of the same name."""
        remote = Remote(_STORE, nqn=NQN, paths=(RemotePath(_ADDRESS, self.port),))
        volume = Volume(name, "remote", remote=remote.name, remote_nsid=1)
        return Change(create=(remote, volume, Controller(name, (Namespace(name),))))


async def encrypted_disk(deployment: Deployment, name: str, root: Path) -> Path:
    """An encrypted file, shown by a controller of the same name; returns the guest's socket."""
    sealed = Volume(f"{name}.sealed", path=str(backing(root / name)))
    volume = Volume(name, "crypt", base=sealed.name)
    change = Change(create=(sealed, volume, Controller(name, (Namespace(name),))))
    await deployment.control.call("change", {"change": change.to_json()}, timeout=None)
    return deployment.state.socket(name)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind((_ADDRESS, 0))
        return int(probe.getsockname()[1])
