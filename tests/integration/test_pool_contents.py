"""What lay on a pool's base, and in its deleted volumes, is not to be read in new ones: also where nothing unmaps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget
from private_tmpfs import private_ramfs

from nvmuser import initiator
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

MIB = 1 << 20
BEFORE, SECRET, OWN = b"\xaa", b"\xbb", b"\xcc"


@pytest.fixture
def ramfs() -> Iterator[Path]:
    with private_ramfs() as path:
        yield path


@pytest.fixture
async def engine(tmp_path: Path, ramfs: Path, spdk_target: BareTarget) -> AsyncIterator[Engine]:
    """On a target whose pool `p` lies on what held something else before."""
    (ramfs / "base").write_bytes(BEFORE * 64 * MIB)
    async with await Client.connect(spdk_target.rpc_socket) as rpc:
        engine = Engine(StateDir(tmp_path / "st"), rpc)
        create = (Volume("base", path=str(ramfs / "base")), Pool("p", base="base", cluster_size=MIB))
        assert (await engine.change(Change(create=create))).problems == ()
        yield engine
        engine.close()


async def contents(engine: Engine, name: str, tmp_path: Path, write: bytes = b"", *, discard: bool = False) -> bytes:
    """Of a volume, which is attached for that; `write` overwrites the first half of each cluster before, `discard`
    gives all of them back."""
    one = Controller("x", (Namespace(name),))
    assert (await engine.change(Change(create=(one,)))).problems == ()

    def act() -> bytes:
        found = bytearray()
        with initiator.connect(StateDir(tmp_path / "st").target_dir("x")) as host, host.queue(4, timeout=30) as queue:
            namespace, back = host.namespace(1), bytearray(MIB // 8)
            for at in range(0, namespace.size, len(back)):
                if write and at % MIB < MIB // 2:
                    queue.write(namespace, at // 512, write * len(back)).wait()
            for at in range(0, namespace.size, MIB) if discard else ():
                queue.deallocate(namespace, [(at // 512, MIB // 512)]).wait()
            for at in range(0, namespace.size, len(back)):
                queue.read(namespace, at // 512, back).wait()
                found += back
        return bytes(found)

    found = await asyncio.to_thread(act)
    assert (await engine.change(Change(delete=(one.key,)))).problems == ()
    return found


async def test_the_base_unmaps_nothing(engine: Engine) -> None:
    assert engine.rpc
    (base,) = await engine.rpc.call("bdev_get_bdevs", {"name": "base"})
    assert not base["supported_io_types"]["unmap"]


async def test_what_the_base_held_is_not_in_new_volumes(engine: Engine, tmp_path: Path) -> None:
    create = (
        Volume("thick", "lvol", pool="p", size=8 * MIB),
        Volume("thin", "lvol", pool="p", size=8 * MIB, thin=True),
    )
    assert (await engine.change(Change(create=create))).problems == ()
    assert await contents(engine, "thick", tmp_path) == bytes(8 * MIB)
    half = MIB // 2
    assert await contents(engine, "thin", tmp_path, OWN) == (OWN * half + bytes(half)) * 8


async def test_what_deleted_volumes_held_is_not_in_new_ones(engine: Engine, tmp_path: Path) -> None:
    """Every cluster is used in turn."""
    for number in range(2):
        first = Volume("a", "lvol", pool="p", size=24 * MIB, thin=bool(number))
        assert (await engine.change(Change(create=(first,)))).problems == ()
        await contents(engine, "a", tmp_path, SECRET)
        made = (Volume("s", "lvol", pool="p", snapshot_of="a"), Volume("c", "lvol", pool="p", clone_of="s"))
        assert (await engine.change(Change(create=made))).problems == ()
        await contents(engine, "c", tmp_path, SECRET)
        for name in ("c", "s", "a"):
            assert (await engine.change(Change(delete=(Key("volume", name),), wipe=True))).problems == ()
        after = Volume("b", "lvol", pool="p", size=56 * MIB)
        assert (await engine.change(Change(create=(after,)))).problems == ()
        assert await contents(engine, "b", tmp_path) == bytes(56 * MIB)
        assert (await engine.change(Change(delete=(after.key,), wipe=True))).problems == ()


async def test_what_was_discarded_is_not_in_new_volumes(engine: Engine, tmp_path: Path) -> None:
    thin = Volume("a", "lvol", pool="p", size=32 * MIB, thin=True)
    assert (await engine.change(Change(create=(thin,)))).problems == ()
    await contents(engine, "a", tmp_path, SECRET)
    assert await contents(engine, "a", tmp_path, discard=True) == bytes(32 * MIB)
    after = Volume("b", "lvol", pool="p", size=56 * MIB)
    assert (await engine.change(Change(create=(after,)))).problems == ()
    assert await contents(engine, "b", tmp_path) == bytes(56 * MIB)
