"""Encrypted volumes on a real target: what is on the backing, and what becomes of a key."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory

from nvmuser import initiator
from nvmuser.cli import sealed
from nvmuser.errors import ConflictError, NvmuserError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

DISK = Key("volume", "disk")
PLAIN = b"attack at dawn. " * 256
FIELDS = {"size": 8 << 20, "block_size": 512, "backend": "file", "path": "", "key_file": "", "key_command": ""}


@dataclass
class World:
    """An engine and its target."""

    engine: Engine
    state: StateDir
    factory: TargetFactory
    target: BareTarget

    async def create(self, **fields: str) -> None:
        volumes = sealed.pair("disk", {**FIELDS, "volatile": False, **fields})
        outcome = await self.engine.change(Change(create=(*volumes, Controller("x", (Namespace("disk"),)))))
        assert outcome.problems == ()

    async def restart(self) -> tuple[str, ...]:
        """Kill the target; returns what is wrong in the next one."""
        self.target.kill()
        self.target = self.factory.start("next", polled=True)
        self.engine.rpc = await Client.connect(self.target.rpc_socket)
        return await self.reconcile()

    async def reconcile(self) -> tuple[str, ...]:
        return tuple(map(str, (await self.engine.reconcile()).problems))

    async def access(self, data: bytes | None = None) -> bytes:
        """Read the first block; write it twice before that, if data is given."""

        def act() -> bytes:
            found = bytearray(len(PLAIN))
            with initiator.connect(self.state.target_dir("x")) as host, host.queue(4, timeout=30) as queue:
                for block in (0, len(PLAIN) // 512) if data else ():
                    queue.write(host.namespace(1), block, data or b"").wait()
                queue.flush(host.namespace(1)).wait()
                queue.read(host.namespace(1), 0, found).wait()
            return bytes(found)

        return await asyncio.to_thread(act)

    @property
    def backing(self) -> bytes:
        (volume,) = (one for one in self.engine.desired().volumes() if one.path)
        return Path(volume.path).read_bytes()


@pytest.fixture
async def world(tmp_path: Path, target_factory: TargetFactory) -> AsyncIterator[World]:
    target, state = target_factory.start(polled=True), StateDir(tmp_path / "st")
    async with await Client.connect(target.rpc_socket) as rpc:
        world = World(Engine(state, rpc), state, target_factory, target)
        yield world
        world.engine.close()
        if world.engine.rpc:
            await world.engine.rpc.aclose()


def key_file(path: Path, key: bytes) -> str:
    path.write_bytes(key)
    path.chmod(0o600)
    return str(path)


async def test_ciphertext_on_the_backing_and_the_data_after_a_crash(world: World) -> None:
    await world.create()
    assert await world.access(PLAIN) == PLAIN
    first, second = world.backing[: len(PLAIN)], world.backing[len(PLAIN) : 2 * len(PLAIN)]
    assert b"attack" not in world.backing
    assert first != second
    # Neither within what was written: each of its blocks is the same plaintext.
    assert len({first[at : at + 512] for at in range(0, len(first), 512)}) == len(first) // 512
    assert await world.restart() == ()
    assert await world.access() == PLAIN
    (key,) = (world.state.root / "keys").iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    keys = (Key("controller", "x"), *sealed.with_base(world.engine.desired(), DISK))
    assert (await world.engine.change(Change(delete=keys, wipe=True))).problems == ()
    assert world.engine.desired().wanted() == []
    assert list((world.state.root / "keys").iterdir()) == []
    assert world.engine.rpc
    assert await world.engine.rpc.call("accel_crypto_keys_get") == []


async def test_a_key_is_needed_at_each_start_and_has_to_be_the_right_one(world: World, tmp_path: Path) -> None:
    key = os.urandom(64)
    path = key_file(tmp_path / "key", key)
    await world.create(key_file=path)
    assert await world.access(PLAIN) == PLAIN
    os.unlink(path)
    problems = await world.restart()
    assert f"volume disk: {path}: its key is missing, without which it cannot be read" in problems
    key_file(tmp_path / "key", os.urandom(64))
    wrong = f"volume disk: key_file {path} is another key than the one that its data was written with"
    assert wrong in await world.reconcile()
    key_file(tmp_path / "key", key.hex().encode() + b"\n")
    assert await world.reconcile() == ()
    assert await world.access() == PLAIN


async def test_where_the_key_comes_from_changes_only_to_where_the_same_key_is(world: World, tmp_path: Path) -> None:
    key = os.urandom(64)
    await world.create(key_command=f"cat {key_file(tmp_path / 'key', key)}")
    assert await world.access(PLAIN) == PLAIN
    assert await world.restart() == ()
    assert await world.access() == PLAIN
    disk = world.engine.desired().get(DISK).to_json()
    for name, content in (("same", key), ("other", os.urandom(64))):
        moved = disk | {"key_command": "", "key_file": key_file(tmp_path / name, content)}
        change = Change(update=(Volume.from_json(moved),))
        if name == "same":
            assert (await world.engine.change(change)).problems == ()
        else:
            with pytest.raises(NvmuserError, match="is another key"):
                await world.engine.change(change)
    with pytest.raises(ConflictError, match="its key_check is"):
        await world.engine.change(Change(update=(Volume.from_json(disk | {"key_check": "0" * 32}),)))


async def test_the_key_is_nowhere_else(world: World, tmp_path: Path) -> None:
    key = os.urandom(64)
    path = key_file(tmp_path / "key", key)
    await world.create(key_file=path)
    assert await world.access(PLAIN) == PLAIN
    rpc = world.engine.rpc
    assert rpc
    shown = [await rpc.call("accel_crypto_keys_get"), await rpc.call("framework_get_config", {"name": "accel"})]
    shown += [await rpc.call("bdev_get_bdevs"), [one.to_json() for one in world.engine.desired().volumes()]]
    texts = [json.dumps(shown), world.target.log.read_text()]
    texts.append(Path(f"/proc/{rpc.peer_pid}/cmdline").read_text())
    for text in texts:
        assert not any(half.hex() in text.lower() for half in (key[:32], key[32:]))
    stored = world.state.store.read_bytes()
    assert key not in stored
    assert key.hex().encode() not in stored
    limits = Path(f"/proc/{rpc.peer_pid}/limits").read_text().splitlines()
    (core,) = (line.split()[4:6] for line in limits if line.startswith("Max core file size"))
    assert core == ["1", "1"], "a core file would have the key"


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"x" * 63, 0o600, "expected 64 bytes, or 128 hexadecimal digits"),
        (b"x" * 64, 0o600, "both halves of it are the same"),
        (bytes(range(64)), 0o644, "others may read the key: chmod 600"),
    ],
)
async def test_what_is_no_key_is_refused_before_anything_is_made(
    world: World, tmp_path: Path, content: bytes, mode: int, reason: str
) -> None:
    path = key_file(tmp_path / "key", content)
    os.chmod(path, mode)
    with pytest.raises(NvmuserError, match=reason):
        await world.create(key_file=path)
    assert world.engine.desired().wanted() == []
    with pytest.raises(NvmuserError, match="its key is missing"):
        await world.create(key_file=str(tmp_path / "none"))
