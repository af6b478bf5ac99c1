"""An engine with a target of its own, and another target that it reaches over TCP."""

from __future__ import annotations

import base64
import os
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bare_target import BareTarget, TargetFactory

from nvmuser.errors import TargetError
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

NQN = "nqn.2026-11.org.example:far"


@dataclass
class Pair:
    """An engine, and the target that it reaches over TCP."""

    engine: Engine
    far: Client
    state: StateDir
    port: int
    near: BareTarget
    """The engine's own."""

    async def admit(self, nqn: str, **keys: str) -> None:
        await self.far.call("nvmf_subsystem_add_host", {"nqn": NQN, "host": nqn, **keys})

    async def listen(self, address: str = "127.0.0.1", **options: object) -> None:
        family = "IPv6" if ":" in address else "IPv4"
        where = {"trtype": "TCP", "adrfam": family, "traddr": address, "trsvcid": str(self.port)}
        await self.far.call("nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": where, **options})

    async def attach(self, address: str, nqn: str = NQN, **fields: Any) -> None:
        remote = Remote("far", nqn=nqn, paths=(RemotePath(address, self.port),), **fields)
        disk = Volume("disk", "remote", remote="far", remote_nsid=1)
        outcome = await self.engine.change(Change(create=(remote, disk, Controller("x", (Namespace("disk"),)))))
        assert outcome.problems == ()
        assert (await self.engine.reconcile()).calls == 0
        assert not (await self.engine.status()).drifted

    async def refusal(self, address: str, nqn: str = NQN, **fields: str) -> str:
        with pytest.raises(TargetError) as caught:
            await self.attach(address, nqn, **fields)
        assert self.engine.desired().wanted() == []
        assert "\n" not in str(caught.value)
        return str(caught.value)


@asynccontextmanager
async def open_pair(directory: Path, factory: TargetFactory) -> AsyncIterator[Pair]:
    """With an empty state directory, and a namespace of 32 MiB."""
    far, near = factory.start("far"), factory.start("near", polled=True)
    async with await Client.connect(far.rpc_socket) as rpc, await Client.connect(near.rpc_socket) as near_rpc:
        engine = Engine(StateDir(directory / "st"), near_rpc)
        await rpc.call("nvmf_create_transport", {"trtype": "TCP"})
        await rpc.call("bdev_malloc_create", {"name": "m", "num_blocks": 65536, "block_size": 512})
        await rpc.call("nvmf_create_subsystem", {"nqn": NQN, "allow_any_host": False, "serial_number": "FAR"})
        await rpc.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "m"}})
        yield Pair(engine, rpc, StateDir(directory / "st"), free_port(), near)
        engine.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def key_file(directory: Path, name: str, text: str) -> str:
    path = directory / name
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def dhchap_key() -> str:
    secret = os.urandom(32)
    return f"DHHC-1:01:{base64.b64encode(secret + zlib.crc32(secret).to_bytes(4, 'little')).decode()}:"


def tls_key() -> str:
    secret = os.urandom(32)
    return f"NVMeTLSkey-1:01:{base64.b64encode(secret + zlib.crc32(secret).to_bytes(4, 'little')).decode()}:"
