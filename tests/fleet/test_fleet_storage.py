"""Volumes that two hosts reach: real targets, a remote's reservations, images in a real Ceph."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from fleet_storage import RealHost, StorageWorld, blocks
from fleet_world import ADMIN, until

from nvmuser.fleet.evacuation import evacuate
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.supervisor import control


def newest_answered(host: RealHost) -> dict[int, tuple[int, int]]:
    """Block → epoch and number of the last write that was answered."""
    found: dict[int, tuple[int, int]] = {}
    for writer in host.writers:
        for _, block, number in (line for line in writer.lines if line[0] == "a"):
            found[int(block)] = max(found.get(int(block), (0, 0)), (writer.epoch, int(number)))
    return found


def is_kept(before: dict[int, tuple[int, int]], now: list[tuple[int, int] | None]) -> bool:
    return all((found := now[block]) is not None and found >= said_ for block, said_ in before.items())


def has_any(host: RealHost) -> bool:
    """Whether its own store has a controller or a volume."""
    return any(one.kind in ("controller", "volume") for one in control.load(host.state).wanted())


@pytest.mark.parametrize("kind", ["remote", pytest.param("image", marks=pytest.mark.matrix)])
async def test_moves_with_its_data(storage: StorageWorld, kind: str) -> None:
    h1, h2 = storage.hosts["h1"], storage.hosts["h2"]
    objects = storage.remote("v") if kind == "remote" else storage.image("v")
    await storage.declare("h1", *objects)
    owner = await storage.owner("v")
    assert (owner.host, owner.epoch, owner.fences[0]["host"]) == ("h1", 1, "h1")
    assert kind == "remote" or owner.fences[0]["address"], "recorded before it was opened"
    writer = await h1.write("v", 1)
    await until(lambda: writer.answered > 20, 30)
    await writer.end()
    # Planned.
    await storage.move("v", "h2")
    assert is_kept(newest_answered(h1), await asyncio.to_thread(blocks, h2, "v"))
    assert (await storage.owner("v")).epoch == 2
    # Forced, from a host that sleeps, and wakes later.
    writer = await h2.write("v", 2)
    await until(lambda: writer.answered > 20, 30)
    h2.signal(signal.SIGSTOP)
    await storage.move("v", "h1", force=True)
    owner = await storage.owner("v")
    assert (owner.host, owner.epoch) == ("h1", 3)
    second = await h1.write("v", 3)
    await until(lambda: second.answered > 20, 30)
    answered = writer.answered
    h2.signal(signal.SIGCONT)
    await until(lambda: any(line[0] == "e" for line in writer.lines), 60)
    assert writer.answered <= answered + 1, "the write that it slept in may have ended before"
    await until(lambda: not has_any(h2), 60)
    await second.end()
    now = await asyncio.to_thread(blocks, h1, "v")
    assert is_kept(newest_answered(h1), now)
    assert is_kept(newest_answered(h2), now)
    await writer.end()  # it would be let in again
    # And back: by a connection of its own again, where the cluster has shut out the one that it had.
    await storage.move("v", "h2", force=True)
    last = await h2.write("v", 4)
    await until(lambda: last.answered > 20, 30)
    await last.end()


@pytest.mark.matrix
async def test_a_host_dies_and_its_controllers_come_back_by_themselves(storage: StorageWorld) -> None:
    h1, h2 = storage.hosts["h1"], storage.hosts["h2"]
    await storage.declare("h1", *storage.remote("r"), failover="auto")
    await storage.declare("h1", *storage.image("i"), failover="auto")
    writers = [await h1.write(name, 1) for name in "ri"]
    await until(lambda: all(writer.answered > 20 for writer in writers), 30)
    began = time.monotonic()
    await h1.power_off()
    await until(lambda: all(h2.state.socket(name).exists() for name in "ri"), 60)
    print(f"served elsewhere after {time.monotonic() - began:.1f} s")
    for name, writer in zip("ri", writers, strict=True):
        h1.writers = [writer]
        assert is_kept(newest_answered(h1), await asyncio.to_thread(blocks, h2, name))


async def test_a_host_loses_its_power(storage: StorageWorld) -> None:
    h1, h2 = storage.hosts["h1"], storage.hosts["h2"]
    await storage.declare("h1", *storage.remote("r"))
    await storage.declare("h1", *storage.image("i"))
    writers = [await h1.write(name, 1) for name in "ri"]
    await until(lambda: all(writer.answered > 20 for writer in writers), 30)
    await h1.power_off()
    async with storage.session() as one:
        done = await evacuate(one, "h1", ADMIN, force=True)
    assert done.stayed == {}
    assert done.moved == {Key("controller", name): "h2" for name in "ri"}
    for name, writer in zip("ri", writers, strict=True):
        h1.writers = [writer]
        assert is_kept(newest_answered(h1), await asyncio.to_thread(blocks, h2, name))
    await h1.start()
    await until(lambda: storage.live("h1"), 30)
    await until(lambda: not has_any(h1), 30)
    assert {(await storage.owner(name)).host for name in "ri"} == {"h2"}
    async with storage.session() as one:
        keys = tuple(Key(kind, name) for name in "ri" for kind in ("controller", "volume"))
        await one.change(Change(delete=keys, wipe=True), ADMIN, {}, "")
    images = storage.ceph.run("rbd", "--keyring", storage.ceph.keyring, "ls", "rbd") if storage.ceph else ""
    assert f"{storage.fleet}-i" not in images.split(), (
        "an image that the fleet made goes with its volume, wherever that is"
    )
