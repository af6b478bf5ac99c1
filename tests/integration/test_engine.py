"""The engine against the real target: what the unit tests' model of SPDK must also hold."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from bare_target import BareTarget, TargetFactory

from nvmuser import initiator
from nvmuser.errors import ConflictError, HostConnectionError, NvmuserError, TargetError, UsageError
from nvmuser.model import change as changes
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Limits, Namespace, Pool, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

MIB = 1 << 20


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "st")


@pytest.fixture
async def engine(state: StateDir, spdk_target: BareTarget) -> AsyncIterator[Engine]:
    async with await Client.connect(spdk_target.rpc_socket, window=128) as rpc:
        engine = Engine(state, rpc)
        yield engine
        engine.close()


async def again_nothing(engine: Engine) -> None:
    outcome = await engine.reconcile()
    assert (outcome.calls, outcome.problems) == (0, ())
    status = await engine.status()
    assert not status.drifted
    assert not status.missing


def volume(name: str, **fields: object) -> Volume:
    return Volume(name, **({"size": 64 * MIB} | fields))  # type: ignore[arg-type]


async def test_file_volume_and_controller(engine: Engine, state: StateDir) -> None:
    assert engine.rpc
    one = Controller("vm1", (Namespace("a"), Namespace("b")))
    outcome = await engine.change(Change(create=(volume("a"), volume("b", block_size=4096), one)))
    assert outcome.problems == ()
    assert (state.target_dir("vm1") / "cntrl").is_socket()
    assert state.target_dir("vm1").stat().st_mode & 0o777 == 0o750
    await again_nothing(engine)
    subsystems = {one["nqn"]: one for one in await engine.rpc.call("nvmf_get_subsystems")}
    made = subsystems["nqn.2026-11.org.nvmuser:vm1"]
    assert made["min_cntlid"] == made["max_cntlid"] == 1
    assert [(ns["nsid"], ns["bdev_name"]) for ns in made["namespaces"]] == [(1, "a"), (2, "b")]
    assert all(ns["uuid"] and ns["nguid"] and ns["eui64"] for ns in made["namespaces"])
    (transport,) = await engine.rpc.call("nvmf_get_transports")
    assert transport["trtype"] == "VFIOUSER"


async def test_namespaces_move_and_volumes_grow(engine: Engine, state: StateDir) -> None:
    create = (volume("a"), volume("b"), Controller("x", (Namespace("a"),)), Controller("y", (Namespace("b"),)))
    outcome = await engine.change(Change(create=create))
    x, y = (Controller.from_json(o) for o in outcome.objects if o["kind"] == "controller")
    a = next(Volume.from_json(o) for o in outcome.objects if o["name"] == "a")
    # swap the two and grow one, at once
    x, y = (replace(x, namespaces=(Namespace("b"),)), replace(y, namespaces=(Namespace("a", 3),)))
    outcome = await engine.change(Change(update=(x, y, replace(a, size=128 * MIB, limits=Limits(iops=5000)))))
    assert outcome.problems == ()
    await again_nothing(engine)
    assert engine.rpc
    (bdev,) = await engine.rpc.call("bdev_get_bdevs", {"name": "a"})
    assert bdev["num_blocks"] * bdev["block_size"] == 128 * MIB
    assert bdev["assigned_rate_limits"]["rw_ios_per_sec"] == 5000


async def test_delete_is_refused_while_in_use_and_then_complete(engine: Engine, state: StateDir) -> None:
    await engine.change(Change(create=(volume("a"), Controller("x", (Namespace("a"),)))))
    with pytest.raises(ConflictError, match="volume a: in use by controller x"):
        await engine.change(Change(delete=(Key("volume", "a"),), wipe=True))
    with pytest.raises(UsageError, match="--yes"):
        await engine.change(Change(delete=(Key("volume", "a"), Key("controller", "x"))))
    outcome = await engine.change(Change(delete=(Key("volume", "a"), Key("controller", "x")), wipe=True))
    assert outcome.problems == ()
    assert not (state.volumes / "a").exists()
    assert not state.target_dir("x").exists()
    assert engine.rpc
    assert await engine.rpc.call("bdev_get_bdevs") == []
    await engine.change(Change(create=(volume("a"),)))  # the names are free again


async def test_a_refusal_by_spdk_leaves_nothing_behind(engine: Engine, state: StateDir) -> None:
    assert engine.rpc
    params = {"nqn": "nqn.2026-11.org.nvmuser:x", "serial_number": "OTHER"}
    await engine.rpc.call("nvmf_create_subsystem", params)
    with pytest.raises(TargetError, match=r"controller x: subsystem .* is not ours .*; nothing was changed"):
        await engine.change(Change(create=(volume("a"), Controller("x", (Namespace("a"),)))))
    assert await engine.rpc.call("bdev_get_bdevs") == []
    assert not (state.volumes / "a").exists()
    status = await engine.status()
    assert status.foreign == ("subsystem nqn.2026-11.org.nvmuser:x",)
    assert engine.controllers() == []


async def test_everything_comes_back_after_a_crash(state: StateDir, target_factory: TargetFactory) -> None:
    target = target_factory.start()
    count = 40
    create: list[Volume | Controller] = [volume(f"v{n}", size=MIB) for n in range(count)]
    create += [Controller(f"c{n}", (Namespace(f"v{n}"),)) for n in range(count)]
    async with await Client.connect(target.rpc_socket) as rpc:
        engine = Engine(state, rpc)
        await engine.change(Change(create=tuple(create)))
        before = await rpc.call("nvmf_get_subsystems")
    target.kill()
    engine.rpc = None
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine.rpc = rpc
        outcome = await engine.reconcile()
        assert outcome.problems == ()
        assert sorted(map(str, await rpc.call("nvmf_get_subsystems"))) == sorted(map(str, before))
    engine.close()


async def test_a_host_finds_what_it_wrote_after_a_crash(state: StateDir, target_factory: TargetFactory) -> None:
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine = Engine(state, rpc)
        await engine.change(Change(create=(volume("a"), Controller("x", (Namespace("a"),)))))
    written, back = os.urandom(MIB), bytearray(MIB)
    with initiator.connect(state.target_dir("x")) as first, first.queue(4, timeout=20) as queue:
        before = first.namespace(1)
        queue.write(before, 3, written).wait()
        target.kill()
        with pytest.raises(HostConnectionError):
            queue.read(before, 3, back).wait()
    engine.rpc = None
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine.rpc = rpc
        assert (await engine.reconcile()).problems == ()
        with initiator.connect(state.target_dir("x")) as second, second.queue(4, timeout=20) as queue:
            assert second.namespace(1) == before
            queue.read(second.namespace(1), 3, back).wait()
    assert back == written
    engine.close()


async def test_drift_is_seen_and_repaired(engine: Engine) -> None:
    assert engine.rpc
    await engine.change(Change(create=(volume("a"), volume("b"), Controller("x", (Namespace("a"), Namespace("b"))))))
    nqn = "nqn.2026-11.org.nvmuser:x"
    await engine.rpc.call("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": 1})
    await engine.rpc.call("bdev_null_create", {"name": "stranger", "num_blocks": 2048, "block_size": 512})
    await engine.rpc.call("bdev_set_qos_limit", {"name": "b", "rw_ios_per_sec": 3000})
    status = await engine.status()
    assert status.foreign == ("bdev stranger",)
    assert set(status.drifted) == {Key("controller", "x"), Key("volume", "b")}
    await engine.rpc.call("bdev_aio_delete", {"name": "b"})
    assert Key("volume", "b") in (await engine.status()).missing
    await engine.reconcile()
    await again_nothing(engine)
    assert len(await engine.rpc.call("bdev_get_bdevs")) == 3


async def test_a_missing_backing_file_is_never_made_anew(engine: Engine, state: StateDir) -> None:
    assert engine.rpc
    await engine.change(Change(create=(volume("a"), volume("b"))))
    await engine.rpc.call("bdev_aio_delete", {"name": "a"})
    (state.volumes / "a").rename(state.volumes / "gone")
    outcome = await engine.reconcile()
    assert [one.object for one in outcome.problems] == [Key("volume", "a")]
    assert "is gone" in outcome.problems[0].message
    assert not (state.volumes / "a").exists()
    (state.volumes / "gone").rename(state.volumes / "a")
    await engine.reconcile()
    await again_nothing(engine)


async def test_a_backing_file_belongs_to_one(engine: Engine, tmp_path: Path, state: StateDir) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * MIB)
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match=rf"disk.img: open elsewhere already .*process {os.getpid()}"):
            await engine.change(Change(create=(Volume("a", path=str(path)),)))
    await engine.change(Change(create=(Volume("a", path=str(path)),)))
    with path.open("r+b") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert path.stat().st_size == MIB
    # it was not ours: deleting the volume lets it be
    await engine.change(Change(delete=(Key("volume", "a"),)))
    assert path.read_bytes() == b"x" * MIB


async def test_pool_snapshot_clone(engine: Engine, state: StateDir, target_factory: TargetFactory) -> None:
    pool = (volume("disk", size=256 * MIB), Pool("fast", base="disk", cluster_size=MIB))
    thin = Volume("a", "lvol", size=32 * MIB, pool="fast", thin=True)
    await engine.change(Change(create=(*pool, thin, Volume("b", "lvol", size=16 * MIB, pool="fast"))))
    await engine.change(Change(create=(Volume("snap", "lvol", pool="fast", snapshot_of="a"),)))
    outcome = await engine.change(Change(create=(Volume("copy", "lvol", pool="fast", clone_of="snap"),)))
    copy = Volume.from_json(outcome.objects[0])
    await engine.change(Change(create=(Controller("x", (Namespace("a"), Namespace("copy"))),)))
    await again_nothing(engine)
    with pytest.raises(ConflictError, match="volume snap: in use by volume copy"):
        await engine.change(Change(delete=(Key("volume", "snap"),), wipe=True))
    await engine.change(Change(update=(replace(copy, inflated=True),)))
    await again_nothing(engine)
    with pytest.raises(ConflictError, match="volume a: in use by"):
        await engine.change(Change(delete=(Key("volume", "a"),), wipe=True))
    keys = (
        Key("volume", "a"),
        Key("volume", "b"),
        Key("volume", "copy"),
        Key("volume", "snap"),
        Key("volume", "disk"),
        Key("pool", "fast"),
        Key("controller", "x"),
    )
    outcome = await engine.change(Change(delete=keys, wipe=True))
    assert outcome.problems == ()
    assert engine.rpc
    assert await engine.rpc.call("bdev_get_bdevs") == []
    assert await engine.rpc.call("bdev_lvol_get_lvstores") == []


async def test_pool_comes_back_after_a_crash_with_its_data(state: StateDir, target_factory: TargetFactory) -> None:
    target = target_factory.start()
    lvol = Volume("a", "lvol", size=32 * MIB, pool="p")
    create = (volume("disk", size=256 * MIB), Pool("p", base="disk", cluster_size=MIB), lvol)
    async with await Client.connect(target.rpc_socket) as rpc:
        engine = Engine(state, rpc)
        await engine.change(Change(create=(*create, Controller("x", (Namespace("a"),)))))
        (store,) = await rpc.call("bdev_lvol_get_lvstores")
    target.kill()
    engine.rpc = None
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine.rpc = rpc
        assert (await engine.reconcile()).problems == ()
        (after,) = await rpc.call("bdev_lvol_get_lvstores")
        assert (after["uuid"], after["free_clusters"]) == (store["uuid"], store["free_clusters"])
        await again_nothing(engine)
    # and when the pool's data is gone, it is not replaced by an empty pool
    target.kill()
    engine.rpc = None
    (state.volumes / "disk").write_bytes(bytes(256 * MIB))
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine.rpc = rpc
        outcome = await engine.reconcile()
        assert {one.object for one in outcome.problems} == {
            Key("pool", "p"),
            Key("volume", "a"),
            Key("controller", "x"),
        }
        assert await rpc.call("bdev_lvol_get_lvstores") == []
    engine.close()


async def test_a_mirror_comes_back_after_a_crash(state: StateDir, target_factory: TargetFactory) -> None:
    mirror = Volume("m", "raid1", members=("a", "b"))
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine = Engine(state, rpc)
        await engine.change(Change(create=(volume("a"), volume("b"), mirror, Controller("x", (Namespace("m"),)))))
    target.kill()
    engine.rpc = None
    target = target_factory.start()
    async with await Client.connect(target.rpc_socket) as rpc:
        engine.rpc = rpc
        assert (await engine.reconcile()).problems == ()
        await again_nothing(engine)
        (raid,) = await rpc.call("bdev_raid_get_bdevs", {"category": "online"})
        assert raid["num_base_bdevs_operational"] == 2
    engine.close()


async def test_what_a_guest_writes_is_not_taken_for_a_pool(
    engine: Engine, target_factory: TargetFactory, tmp_path: Path
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 * MIB))
    other = target_factory.start("other")
    async with await Client.connect(other.rpc_socket) as rpc:
        await rpc.call("bdev_aio_create", {"name": "d", "filename": str(path), "block_size": 512})
        await rpc.call("bdev_lvol_create_lvstore", {"lvs_name": "p", "bdev_name": "d"})
    other.kill()
    await engine.change(Change(create=(Volume("d", path=str(path)), Controller("x", (Namespace("d"),)))))
    await again_nothing(engine)
    assert engine.rpc
    assert await engine.rpc.call("bdev_lvol_get_lvstores") == []
    assert (await engine.status()).foreign == ()


async def test_pools_and_what_is_in_them_grow(engine: Engine) -> None:
    assert engine.rpc
    lvol = Volume("a", "lvol", size=32 * MIB, pool="p")
    create = (volume("disk", size=256 * MIB), Pool("p", base="disk", cluster_size=MIB), lvol)
    outcome = await engine.change(Change(create=create))
    disk, one = (
        Volume.from_json(o) for o in sorted(outcome.objects, key=lambda o: str(o["name"])) if o["kind"] == "volume"
    )
    disk, one = (disk, one) if disk.name == "disk" else (one, disk)
    (store,) = await engine.rpc.call("bdev_lvol_get_lvstores")
    await engine.change(Change(update=(replace(disk, size=512 * MIB),)))
    (after,) = await engine.rpc.call("bdev_lvol_get_lvstores")
    assert after["total_data_clusters"] > store["total_data_clusters"] + 200
    await engine.change(Change(update=(replace(one, size=300 * MIB),)))
    (bdev,) = await engine.rpc.call("bdev_get_bdevs", {"name": "p/a"})
    assert bdev["num_blocks"] * bdev["block_size"] == 300 * MIB
    await again_nothing(engine)


async def test_raid_delay_error(engine: Engine) -> None:
    create: tuple[AnyObject, ...] = (
        *(volume(f"d{n}") for n in range(6)),
        Volume("mirror", "raid1", members=("d0", "d1")),
        Volume("joined", "concat", members=("d2", "d3")),
        Volume("slow", "delay", base="d4", latency_us=1000),
        Volume("bad", "error", base="d5"),
        Controller("x", tuple(map(Namespace, ("mirror", "joined", "slow", "bad")))),
    )
    assert (await engine.change(Change(create=create))).problems == ()
    await again_nothing(engine)
    keys = tuple(one.key for one in create)
    assert (await engine.change(Change(delete=keys, wipe=True))).problems == ()
    assert engine.rpc
    assert await engine.rpc.call("bdev_get_bdevs") == []


async def test_remote_over_tcp(state: StateDir, target_factory: TargetFactory) -> None:
    far, near = target_factory.start("far"), target_factory.start("near", polled=True)
    nqn = "nqn.2026-11.org.example:far"
    async with await Client.connect(far.rpc_socket) as rpc, await Client.connect(near.rpc_socket) as near_rpc:
        engine = Engine(state, near_rpc)
        await rpc.call("nvmf_create_transport", {"trtype": "TCP"})
        await rpc.call("bdev_malloc_create", {"name": "m", "num_blocks": 65536, "block_size": 512})
        await rpc.call("nvmf_create_subsystem", {"nqn": nqn, "allow_any_host": True, "serial_number": "FAR"})
        await rpc.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": "m"}})
        for port in ("4491", "4492"):
            address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port}
            await rpc.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})
        remote = Remote("far", nqn=nqn, paths=(RemotePath("127.0.0.1", 4491), RemotePath("127.0.0.1", 4492)))
        disk = Volume("disk", "remote", remote="far", remote_nsid=1)
        outcome = await engine.change(Change(create=(remote, disk, Controller("x", (Namespace("disk"),)))))
        assert outcome.problems == ()
        await again_nothing(engine)
        await engine.change(Change(update=(replace(remote, paths=remote.paths[1:]),)))
        await again_nothing(engine)
        (left,) = await near_rpc.call("bdev_nvme_get_controllers")
        assert [one["trid"]["trsvcid"] for one in left["ctrlrs"]] == ["4492"]
        assert (await engine.change(Change(update=(remote,)))).calls == 1
        with pytest.raises(NvmuserError):
            await engine.change(Change(create=(Volume("none", "remote", remote="far", remote_nsid=9),)))
        keys = (Key("controller", "x"), Key("volume", "disk"), Key("remote", "far"))
        assert (await engine.change(Change(delete=keys))).problems == ()
        assert await near_rpc.call("bdev_nvme_get_controllers") == []
        engine.close()


def test_attach_numbers_namespaces() -> None:
    one = changes.attach(Controller("x", (Namespace("a", 1), Namespace("b", 3))), "c")
    assert [(ns.nsid, ns.volume) for ns in one.namespaces] == [(1, "a"), (2, "c"), (3, "b")]
