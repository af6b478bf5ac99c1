"""Controllers that move between two real targets, with every kind of volume below them, and their data."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bare_target import TargetFactory

from nvmuser import initiator
from nvmuser.errors import ConflictError, TargetError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Namespace, Pool, TargetSettings, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

MIB = 1 << 20
SIZE = 32 * MIB
TARGETS = ("spdk", "fast")
BELOW: dict[str, tuple[AnyObject, ...]] = {
    "file": (Volume("v", size=SIZE),),
    "lvol": (
        Volume("disk", size=4 * SIZE),
        Pool("p", base="disk", cluster_size=MIB),
        Volume("v", "lvol", size=SIZE, pool="p", thin=True),
        Volume("before", "lvol", pool="p", snapshot_of="v"),
    ),
    "raid1": (Volume("a", size=2 * SIZE), Volume("b", size=2 * SIZE), Volume("v", "raid1", members=("a", "b"))),
    "concat": (Volume("a", size=SIZE), Volume("b", size=SIZE), Volume("v", "concat", members=("a", "b"))),
    "error": (Volume("a", size=SIZE), Volume("v", "error", base="a")),
}


@pytest.fixture
async def engine(tmp_path: Path, target_factory: TargetFactory) -> AsyncIterator[Engine]:
    """With two targets."""
    async with contextlib.AsyncExitStack() as stack:
        engine = stack.enter_context(contextlib.closing(Engine(StateDir(tmp_path / "st"))))
        for name in TARGETS:
            rpc = await Client.connect(target_factory.start(name).rpc_socket)
            engine.site(name).rpc = await stack.enter_async_context(rpc)
        await engine.change(Change(create=(TargetSettings("fast", profile="eco"),)))
        yield engine


async def move(engine: Engine, names: Sequence[str], to: str) -> None:
    found = [engine.desired().controller(name) for name in names]
    outcome = await engine.change(Change(update=tuple(replace(one, target=to) for one in found)))
    assert outcome.problems == ()


async def has(engine: Engine, target: str) -> list[str]:
    rpc = engine.site(target).rpc
    assert rpc
    bdevs = [bdev["name"] for bdev in await rpc.call("bdev_get_bdevs")]
    return bdevs + [one["nqn"] for one in await rpc.call("nvmf_get_subsystems") if one["subtype"] == "NVMe"]


def pattern(engine: Engine, data: bytes, *, write: bool) -> bytes:
    """Write one block to controller x, or read it."""
    state = engine._state
    with initiator.connect(state.target_dir("x")) as host, host.queue(4, timeout=20) as queue:
        if write:
            queue.write(host.namespace(1), 8, data).wait()
        back = bytearray(4096)
        queue.read(host.namespace(1), 8, back).wait()
    return bytes(back)


@pytest.mark.parametrize("backend", BELOW)
async def test_to_and_fro(engine: Engine, backend: str) -> None:
    x = Controller("x", (Namespace("v"),))
    assert (await engine.change(Change(create=(*BELOW[backend], x)))).problems == ()
    for target in ("fast", "spdk", "fast", "spdk"):
        data = os.urandom(4096)
        assert await asyncio.to_thread(pattern, engine, data, write=True) == data
        await move(engine, ["x"], target)
        (other,) = set(TARGETS) - {target}
        assert await has(engine, other) == []
        assert await asyncio.to_thread(pattern, engine, b"", write=False) == data
        status = await engine.status()
        assert (status.drifted, status.missing, status.foreign, status.mirrors) == ((), (), (), ())


async def test_what_two_controllers_share_moves_with_both(engine: Engine) -> None:
    below = (*BELOW["lvol"], Volume("w", "lvol", size=SIZE, pool="p", thin=True))
    await engine.change(Change(create=(*below, Controller("x", (Namespace("v"),)), Controller("y", (Namespace("w"),)))))
    with pytest.raises(ConflictError, match="controller move x y --to spdk"):
        await move(engine, ["x"], "fast")
    assert await has(engine, "fast") == []
    await move(engine, ["x", "y"], "fast")
    assert await has(engine, "spdk") == []


async def test_a_connected_host_lets_go_of_it(engine: Engine) -> None:
    """With I/O in flight: the old target has answered or dropped all of it when the new one begins."""
    await engine.change(Change(create=(*BELOW["file"], Controller("x", (Namespace("v"),)))))
    with initiator.connect(engine._state.target_dir("x")) as host, host.queue(32, timeout=20) as queue:
        for number in range(32):
            queue.write(host.namespace(1), number * 8, bytes(4096))
        await move(engine, ["x"], "fast")
        assert await has(engine, "spdk") == []
    data = os.urandom(4096)
    assert await asyncio.to_thread(pattern, engine, data, write=True) == data


async def test_what_the_new_target_cannot_open_goes_back(engine: Engine, tmp_path: Path) -> None:
    await engine.change(Change(create=(*BELOW["file"], Controller("x", (Namespace("v"),)))))
    data = os.urandom(4096)
    await asyncio.to_thread(pattern, engine, data, write=True)
    fast = engine.site("fast").rpc
    assert fast
    await fast.call("bdev_null_create", {"name": "v", "num_blocks": 8, "block_size": 512})
    with pytest.raises(TargetError, match=r"exists and is not ours.*nothing was changed"):
        await move(engine, ["x"], "fast")
    assert engine.desired().controller("x").target == "spdk"
    assert await asyncio.to_thread(pattern, engine, b"", write=False) == data
    assert await has(engine, "fast") == ["v"]


async def test_a_mirror_that_lacks_a_member_lacks_it_there_too(engine: Engine) -> None:
    await engine.change(Change(create=(*BELOW["raid1"], Controller("x", (Namespace("v"),)))))
    path = engine._state.volumes / "b"
    rpc = engine.rpc
    assert rpc
    await rpc.call("bdev_aio_delete", {"name": "b"})
    path.rename(path.with_name("away"))
    await engine.reconcile()
    data = os.urandom(4096)
    await asyncio.to_thread(pattern, engine, data, write=True)
    x = engine.desired().controller("x")
    with pytest.raises(TargetError, match=r"volume b: .*the backing file is gone"):
        await engine.change(Change(update=(replace(x, target="fast"),)))
    assert await asyncio.to_thread(pattern, engine, b"", write=False) == data
    path.with_name("away").rename(path)
    await move(engine, ["x"], "fast")
    assert await asyncio.to_thread(pattern, engine, b"", write=False) == data
    volume = engine.desired().get(Key("volume", "v"))
    assert isinstance(volume, Volume)
