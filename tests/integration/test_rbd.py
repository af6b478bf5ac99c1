"""Volumes on images of a real Ceph: what a host does to them, who may open them, and how refusals read."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from ceph_world import MIB, NAME, cluster_of, image, installation, read, write

from nvmuser import initiator
from nvmuser.bench.measure.ceph_cluster import POOL, CephCluster
from nvmuser.ceph import images
from nvmuser.errors import NvmeStatusError, NvmuserError
from nvmuser.hostfs.fences import Journal
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Pool, Volume
from nvmuser.reconcile import seizure
from nvmuser.reconcile.declare_images import completed
from nvmuser.supervisor import control

BLOCK = 512


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path, for the sockets in it."""
    return tmp_path_factory.mktemp("r")


async def test_a_host_reads_writes_zeroes_deallocates_and_sees_growth(ceph: CephCluster, root: Path) -> None:
    async with installation(ceph, root / "s") as world:
        volume = image("plain", size=64 * MIB, create=True)
        (made,) = await world.create(volume)
        directory = await world.show("plain")

        def act() -> tuple[bytes, bytes, int]:
            with initiator.connect(directory) as controller, controller.queue(depth=4, timeout=30) as queue:
                namespace, memory = controller.namespace(1), initiator.allocate(8 * BLOCK)
                queue.write(namespace, 8, b"\x5a" * (8 * BLOCK)).wait()
                queue.flush(namespace).wait()
                queue.read(namespace, 8, memory).wait()
                written = bytes(memory.view)
                queue.write_zeroes(namespace, 8, 4).wait()
                queue.deallocate(namespace, [(12, 4)]).wait()
                queue.read(namespace, 8, memory).wait()
                return written, bytes(memory.view[: 4 * BLOCK]), namespace.size

        written, zeroed, size = await asyncio.to_thread(act)
        assert (written, zeroed, size) == (b"\x5a" * (8 * BLOCK), bytes(4 * BLOCK), 64 * MIB)
        grown = replace(volume, size=96 * MIB, owned=True, image="plain", uuid=made["uuid"])
        await world.change(Change(update=(grown,)))
        assert (await asyncio.to_thread(size_of, directory)) == 96 * MIB
        assert images.look_at(cluster_of(ceph), [grown])[grown].size == 96 * MIB  # type: ignore[union-attr]
        await world.delete("controller/c-plain", "volume/plain")
        assert "plain" not in ceph.run("rbd", "ls", POOL).split()


def size_of(directory: Path) -> int:
    with initiator.connect(directory) as controller:
        return controller.namespace(1).size


async def test_a_killed_target_is_fenced_and_its_successor_has_the_data(ceph: CephCluster, root: Path) -> None:
    async with installation(ceph, root / "s") as world:
        await world.create(image("kept", size=16 * MIB, create=True))
        directory, data = await world.show("kept"), os.urandom(4096)
        await asyncio.to_thread(write, directory, 0, data)
        journal = Journal(world.state.fences)
        (first,) = journal.addresses(NAME, alive=True)
        pid = await world.pid()
        os.kill(pid, signal.SIGKILL)
        await world.successor(pid)
        assert await asyncio.to_thread(read, directory, 0, 4096) == data
        assert first in ceph.run("ceph", "osd", "blocklist", "ls")
        assert first in journal.addresses(NAME, alive=False)
        (second,) = journal.addresses(NAME, alive=True)
        assert second != first
        await world.delete("controller/c-kept", "volume/kept")


async def test_a_second_installation_is_told_who_has_it(ceph: CephCluster, root: Path) -> None:
    async with installation(ceph, root / "a") as one, installation(ceph, root / "b") as other:
        await one.create(image("mine", size=16 * MIB, create=True))
        (address,) = Journal(one.state.fences).addresses(NAME, alive=True)
        with pytest.raises(NvmuserError, match=f"image rbd/mine: locked by {address} "):
            await other.create(image("mine"))
        assert not (await other.control.call("drift"))["missing"]
        await one.delete("volume/mine")


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.matrix)])
async def test_what_is_taken_from_a_stopped_holder_stays_as_its_new_owner_writes_it(
    ceph: CephCluster, root: Path, rounds: int
) -> None:
    """The holder is stopped in the middle of its writes, and goes on when another has the image. Not one block of what
    it had in flight, or sends then, lands; each round the other way round."""
    volume = image("taken", image="taken")
    wanted = Desired({one.key: Entry(one) for one in (cluster_of(ceph), volume)})
    async with installation(ceph, root / "a") as holder, installation(ceph, root / "b") as taker:
        await holder.create(replace(volume, size=16 * MIB, create=True))
        for number in range(rounds):
            directory, pid = await holder.show("taken"), await holder.pid()
            writing = threading.Event()
            writer = asyncio.create_task(asyncio.to_thread(write_until_refused, directory, writing))
            await asyncio.to_thread(writing.wait)
            os.kill(pid, signal.SIGSTOP)
            (address,) = Journal(holder.state.fences).addresses(NAME, alive=True)
            assert await asyncio.to_thread(seizure.seize, taker.state, volume, wanted) == [address]
            await taker.create(volume)
            ours = bytes([number + 1]) * BLOCKS
            shown = await taker.show("taken")
            await asyncio.to_thread(write, shown, 0, ours)
            os.kill(pid, signal.SIGCONT)
            assert await writer
            assert await asyncio.to_thread(read, shown, 0, BLOCKS) == ours
            os.kill(pid, signal.SIGKILL)
            await holder.successor(pid)
            keys = (Key("controller", "c-taken"), Key("volume", "taken"))
            await holder.change(Change(delete=keys, keep_files=True, wipe=True, force=True))
            await taker.delete("controller/c-taken")
            holder, taker = taker, holder


BLOCKS = 64 * 1024
"""Bytes that both write, the holder in writes of 4 KiB."""


def write_until_refused(directory: Path, writing: threading.Event) -> bool:
    """Write the same places again and again; whether that ended with an error of the controller, not of ours.

    :param writing: set when some of it has been written.
    """
    with initiator.connect(directory) as controller, controller.queue(depth=16, timeout=60) as queue:
        namespace, data = controller.namespace(1), b"\xff" * 4096
        while True:
            requests = [queue.write(namespace, lba, data) for lba in range(0, BLOCKS // BLOCK, 8)]
            writing.set()
            results = []
            for request in requests:
                try:
                    request.wait()
                except NvmeStatusError:
                    results.append("refused")
            if results:
                return results == ["refused"] * len(results)


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        (image("nowhere"), "no such image in cluster ceph: rbd/nowhere; --create with --size makes it"),
        (replace(image("x"), pool_name="none"), "cluster ceph has no pool none"),
        (image("y", create=True), "image rbd/y does not exist: --create needs --size"),
    ],
)
def test_what_cannot_be_declared_says_why(ceph: CephCluster, volume: Volume, reason: str) -> None:
    with pytest.raises(NvmuserError, match=reason):
        completed(Change(create=(cluster_of(ceph), volume)), Desired())


def test_an_image_that_cannot_be_locked_is_refused(ceph: CephCluster) -> None:
    ceph.run("rbd", "create", "--size", "16M", "--image-feature", "layering", f"{POOL}/plainer")
    with pytest.raises(NvmuserError, match="without the feature exclusive-lock: `rbd feature enable"):
        completed(Change(create=(cluster_of(ceph), image("plainer"))), Desired())


def test_who_may_not_is_told_so(ceph: CephCluster, root: Path) -> None:
    ceph.run("rbd", "create", "--size", "16M", f"{POOL}/closed")
    keyring = root / "weak.keyring"
    keyring.write_text(ceph.run("ceph", "auth", "get-or-create", "client.weak", "mon", "allow r"))
    weak = cluster_of(ceph, user="weak", keyring=str(keyring))
    volume = replace(image("closed"), image="closed")
    found = images.look_at(weak, [volume])[volume]
    assert isinstance(found, OSError)
    assert "client.weak may not: it needs" in str(images.explained(found, weak, volume))
    stranger = cluster_of(ceph, user="nobody", keyring=str(keyring))
    with pytest.raises(NvmuserError, match=r"no key for client\.nobody|does not admit client\.nobody"):
        images.look_at(stranger, [volume])


async def test_snapshots_clones_and_a_rollback(ceph: CephCluster, root: Path) -> None:
    async with installation(ceph, root / "s") as world:
        await world.create(image("origin", size=16 * MIB, create=True))
        directory = await world.show("origin")
        await asyncio.to_thread(write, directory, 0, b"\x01" * 4096)
        await world.create(image("friday", snapshot_of="origin"))
        await asyncio.to_thread(write, directory, 0, b"\x02" * 4096)
        await world.create(image("copy", clone_of="friday"))
        assert await asyncio.to_thread(read, await world.show("friday"), 0, 4096) == b"\x01" * 4096
        assert await asyncio.to_thread(read, await world.show("copy"), 0, 4096) == b"\x01" * 4096
        (copy,) = [one for one in control.load(world.state).volumes() if one.name == "copy"]
        assert images.look_at(cluster_of(ceph), [copy])[copy].shared == 16 * MIB  # type: ignore[union-attr]
        for _ in range(2):  # what is independent already is left alone
            await world.change(Change(update=(replace(copy, inflated=True),)))
        assert images.look_at(cluster_of(ceph), [copy])[copy].shared == 0  # type: ignore[union-attr]
        with pytest.raises(NvmuserError):
            await asyncio.to_thread(write, world.state.target_dir("c-friday"), 0, b"\x03" * 4096)
        rollback = {"key": "volume/origin", "snapshot": "volume/friday", "wipe": True}
        with pytest.raises(NvmuserError, match="in use by controller c-origin, which would see it change"):
            await world.control.call("roll_back", rollback)
        await world.delete("controller/c-origin")
        await world.control.call("roll_back", rollback)
        assert await asyncio.to_thread(read, await world.show("origin"), 0, 4096) == b"\x01" * 4096
        controllers = [f"controller/c-{name}" for name in ("friday", "copy", "origin")]
        await world.delete(*controllers, "volume/copy", "volume/friday", "volume/origin")
        assert {"origin", "copy"}.isdisjoint(ceph.run("rbd", "ls", POOL).split())


async def test_snapshots_of_images_and_of_a_pool_together(ceph: CephCluster, root: Path) -> None:
    """That it is one moment for a guest that writes: tests/guest/test_snapshots_together.py."""
    names = ("data", "local", "log")
    async with installation(ceph, root / "s") as world:
        await world.create(
            Volume("file", size=64 * MIB), Pool("p", base="file", cluster_size=MIB),
            Volume("local", "lvol", pool="p", size=4 * MIB),
            image("data", size=16 * MIB, create=True), image("log", size=16 * MIB, create=True),
            Controller("x", tuple(map(Namespace, names))),
        )  # fmt: skip
        write_all(world.state.target_dir("x"), b"\x01" * 4096)
        outcome = await control.snapshot_together(world.state, "x", "friday")
        made = [one["name"] for one in outcome.objects]
        assert made == [f"{name}-friday" for name in names]
        assert (outcome.problems, outcome.pending) == ((), False)
        write_all(world.state.target_dir("x"), b"\x02" * 4096)
        await world.create(Controller("y", tuple(map(Namespace, made))))
        with initiator.connect(world.state.target_dir("y")) as host, host.queue(depth=4, timeout=30) as queue:
            for namespace in host.namespaces():
                memory = initiator.allocate(4096)
                queue.read(namespace, 0, memory).wait()
                assert bytes(memory.view) == b"\x01" * 4096
        await world.delete("controller/y", "controller/x", *(f"volume/{one}" for one in (*made, *names)))


def write_all(directory: Path, data: bytes) -> None:
    """Write to the first block of each namespace."""
    with initiator.connect(directory) as host, host.queue(depth=4, timeout=30) as queue:
        for namespace in host.namespaces():
            queue.write(namespace, 0, data).wait()


async def test_while_the_cluster_is_away_io_waits_and_status_says_what_is(ceph: CephCluster, root: Path) -> None:
    async with installation(ceph, root / "s") as world:
        await world.create(image("waits", size=16 * MIB, create=True))
        directory = await world.show("waits")
        ceph.kill_osd()
        writing = asyncio.create_task(asyncio.to_thread(write, directory, 0, b"\x01" * 4096))
        ceph.run("ceph", "osd", "down", "0")
        (away,) = (await world.control.call("drift", timeout=60))["away"]
        assert away == "cluster ceph: 1 of 1 OSDs are down: I/O to them waits"
        ceph.kill_mon()
        (away,) = (await world.control.call("drift", timeout=60))["away"]
        assert "no monitor answers" in away
        assert not writing.done()
        ceph.start_mon()
        ceph.start_osd()
        await writing
        assert await asyncio.to_thread(read, directory, 0, 4096) == b"\x01" * 4096
        await world.delete("controller/c-waits", "volume/waits")
