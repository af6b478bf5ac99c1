"""A fleet on a real etcd: hosts with real stores and engines, without SPDK."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from etcd_server import running
from fleet_world import ADMIN, FleetHost, World, a_world, controller, disk, is_live, pair, until

from nvmuser.errors import ConflictError, FleetError, NotFoundError, StaleError, TargetError, UsageError
from nvmuser.fleet import audit, membership, waiting, writer
from nvmuser.fleet import part as parts
from nvmuser.fleet.etcd.client import Put, Transaction
from nvmuser.fleet.proposal import propose
from nvmuser.fleet.records import MAX_BYTES, Declared, declared_elsewhere, encode
from nvmuser.fleet.restore import restore
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Remote, TargetSettings, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.model.where import Where


async def test_what_is_declared_comes_to_its_host_alone(world: World) -> None:
    h1, h2 = await world.join("h1"), await world.join("h2")
    outcome = await world.apply(pair("a"), "h1")
    assert outcome.pending, "there is no target"
    assert h1.names == {"volume/v-a", "controller/c-a"}
    assert h2.names == set()
    [volume] = h1.executor.desired().volumes()
    assert (h1.executor.state.volumes / "v-a").stat().st_size == 1 << 20
    assert {"kind": "volume", "name": "v-a", "uuid": volume.uuid}.items() <= outcome.objects[0].items()
    assert h1.executor.desired().controller("c-a").serial == outcome.objects[1]["serial"]


async def test_controllers_are_spread_and_what_they_show_goes_with_them(world: World) -> None:
    hosts = [await world.join(f"h{number}") for number in range(3)]
    whole = Change(create=tuple(one for name in "abcdef" for one in pair(name).create))
    await world.apply(whole)
    for host in hosts:
        found = host.executor.desired()
        assert len(found.controllers()) == 2
        assert {key.name for one in found.controllers() for key in one.depends_on} == {v.name for v in found.volumes()}


async def test_labels_and_rules_decide_where(world: World) -> None:
    for name in ("h1", "h2", "h3"):
        await world.join(name, run=False)
    async with world.session() as one:
        await membership.alter_host(one, "h2", ADMIN, labels={"rack": "a"})
        await membership.alter_host(one, "h3", ADMIN, labels={"rack": "a", "old": ""})
        await membership.alter_host(one, "h3", ADMIN, cordoned=True)
        view = await one.view()
    assert view.hosts["h3"].labels == {"rack": "a"}
    key = Key("controller", "c-a")
    assert propose(view, pair("a"), {key: Where(labels={"rack": "a"})}, "").hosts == {"h2"}
    with pytest.raises(ConflictError, match="no host has rack=b"):
        propose(view, pair("a"), {key: Where(labels={"rack": "b"})}, "")
    with pytest.raises(ConflictError, match="h3 is cordoned"):
        propose(view, pair("a"), {key: Where("h3")}, "")
    with pytest.raises(NotFoundError, match="no host h9"):
        propose(view, pair("a"), {key: Where("h9")}, "")
    await world.apply(pair("b"), wheres={Key("controller", "c-b"): Where("h1")})
    async with world.session() as one:
        view = await one.view()
    assert propose(view, pair("a"), {key: Where(rule="pack")}, "").hosts == {"h1"}
    assert propose(view, pair("a"), {key: Where(rule="spread")}, "").hosts == {"h2"}
    shared = Change(create=(disk("v"), controller("c", "v", "v-b")))
    with pytest.raises(ConflictError, match="controller c: on host h2, and what it goes with, volume v-b, on host h1"):
        propose(view, shared, {Key("controller", "c"): Where("h2")}, "")


async def test_names_are_the_whole_fleets(world: World) -> None:
    await world.join("h1", run=False)
    await world.join("h2", run=False)
    await world.apply(pair("a"), "h1")
    with pytest.raises(ConflictError, match="volume v-a: exists already on host h1"):
        await world.apply(Change(create=(disk("v-a"),)), "h2")
    with pytest.raises(ConflictError, match="is on host h1"):
        await world.apply(Change(create=(disk("x"),)), wheres={Key("volume", "v-a"): Where("h2")})
    with pytest.raises(NotFoundError, match="volume nope: no such volume"):
        await world.apply(Change(delete=(Key("volume", "nope"),)))
    with pytest.raises(UsageError, match="each host's own"):
        await world.apply(Change(update=(TargetSettings(),)))


async def test_a_deletion_is_the_hosts_to_finish(world: World) -> None:
    h1 = await world.join("h1", run=False)
    await world.apply(pair("a"), "h1")
    with pytest.raises(UsageError, match="deleting it deletes its data; pass --yes"):
        await world.apply(Change(delete=(Key("controller", "c-a"), Key("volume", "v-a"))))
    await world.apply(Change(delete=(Key("controller", "c-a"), Key("volume", "v-a")), wipe=True))
    with pytest.raises(ConflictError, match="its deletion on host h1 is not finished yet"):
        await world.apply(pair("a"), "h1")
    await world.run(h1)
    async with world.session() as one:
        await until(lambda: _is_empty(one))
    await world.apply(pair("a"), "h1")
    assert h1.names == {"volume/v-a", "controller/c-a"}


async def _is_empty(one: object) -> bool:
    return not (await one.view()).objects  # type: ignore[attr-defined]


async def test_a_file_that_is_to_stay_stays(world: World) -> None:
    h1 = await world.join("h1")
    await world.apply(Change(create=(disk("v"),)), "h1")
    await world.apply(Change(delete=(Key("volume", "v"),), keep_files=True))
    assert h1.names == set()
    assert (h1.executor.state.volumes / "v").exists()


async def test_what_a_host_refuses_is_undone_everywhere(world: World) -> None:
    h1, h2 = await world.join("h1"), await world.join("h2")
    lost = Volume("lost", path="/nowhere/at/all")
    both = Change(create=(*pair("a").create, lost, controller("c-lost", "lost")))
    wheres = {Key("controller", "c-a"): Where("h2"), Key("controller", "c-lost"): Where("h1")}
    with pytest.raises(TargetError, match=r"volume lost: /nowhere/at/all: .*host h1.*nothing was changed"):
        await world.apply(both, wheres=wheres)
    assert h1.names == h2.names == set()
    async with world.session() as one:
        await until(lambda: _is_empty(one))


async def test_one_object_that_cannot_be_does_not_hold_up_the_others(world: World) -> None:
    """Both were declared while the host was away."""
    h1 = await world.join("h1", run=False)
    lost = Change(create=(Volume("lost", path="/nowhere/at/all"), controller("c-lost", "lost")))
    await world.apply(lost, "h1")
    await world.apply(pair("a"), "h1")
    await world.run(h1)
    await until(lambda: h1.names == {"volume/v-a", "controller/c-a"})
    async with world.session() as one:
        await until(lambda: _reported(one, "h1"))
        report = (await one.reports())["h1"]
    assert set(report.problems) == {"volume/lost", "controller/c-lost"}


async def _reported(one: object, host: str) -> bool:
    reports = await one.reports()  # type: ignore[attr-defined]
    return host in reports and reports[host].problems


async def test_a_host_that_dies_meanwhile_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_S", 0.05)
    await world.join("h1", run=False)
    async with world.session() as one:
        await one.client.put(one.keys.live("h1"), b"{}")
        changing = asyncio.create_task(world.apply(pair("a"), "h1"))
        await until(lambda: _has(one, Key("controller", "c-a")))
        assert not changing.done()
        await one.client.write_if(Transaction({}, (), {one.keys.live("h1"): None}))
    outcome = await changing
    assert (outcome.pending, outcome.problems) == (True, ())


async def _has(one: object, key: Key) -> bool:
    return key in (await one.view()).objects  # type: ignore[attr-defined]


async def test_what_is_on_a_new_remote_comes_with_it_although_something_else_is_refused(world: World) -> None:
    h1 = await world.join("h1", run=False)
    far = Remote("far", nqn="nqn.2026-11.org.example:far", paths=(RemotePath("192.0.2.1", 4420),))
    there = [Volume(f"r{number}", backend="remote", remote="far", remote_nsid=number) for number in (1, 2)]
    await world.apply(Change(create=(far, *there, controller("c1", "r1"), controller("c2", "r2"))), "h1")
    await world.apply(Change(create=(Volume("lost", path="/nowhere/at/all"),)), "h1")
    await world.run(h1)
    await until(lambda: h1.names == {"remote/far", "volume/r1", "volume/r2", "controller/c1", "controller/c2"})


async def test_a_remote_is_on_every_host_that_uses_it(world: World) -> None:
    h1, h2 = await world.join("h1"), await world.join("h2")
    far = Remote("far", nqn="nqn.2026-11.org.example:far", paths=(RemotePath("192.0.2.1", 4420),))
    one = Volume("r1", backend="remote", remote="far", remote_nsid=1)
    two = Volume("r2", backend="remote", remote="far", remote_nsid=2)
    change = Change(create=(far, one, two, controller("c1", "r1"), controller("c2", "r2")))
    await world.apply(change, wheres={Key("controller", "c1"): Where("h1"), Key("controller", "c2"): Where("h2")})
    assert h1.names == {"remote/far", "volume/r1", "controller/c1"}
    assert h2.names == {"remote/far", "volume/r2", "controller/c2"}
    with pytest.raises(ConflictError, match="remote far: in use by"):
        await world.apply(Change(delete=(far.key,)))
    await world.apply(Change(delete=(Key("controller", "c1"), Key("volume", "r1"))))
    assert h1.names == set(), "nothing there lies on it any more"
    await world.apply(Change(delete=(Key("controller", "c2"), Key("volume", "r2"))))
    async with world.session() as session:
        await until(lambda: _has_only(session, far.key))
    await world.apply(Change(delete=(far.key,)))


async def _has_only(one: object, key: Key) -> bool:
    return set((await one.view()).objects) == {key}  # type: ignore[attr-defined]


async def test_a_cluster_is_on_every_host_that_uses_it(world: World) -> None:
    for name in ("h1", "h2"):
        await world.join(name, run=False)
    ceph = Cluster("ceph", conf="/etc/ceph/ceph.conf", user="nvmuser")
    images = [Volume(f"i{n}", "rbd", size=1 << 20, cluster="ceph", pool_name="rbd", create=True) for n in (1, 2)]
    await world.apply(Change(create=(ceph, images[0], controller("c1", "i1"))), "h1")
    await world.apply(Change(create=(images[1], controller("c2", "i2"))), "h2")
    async with world.session() as one:
        view = await one.view()
    for host, number in (("h1", 1), ("h2", 2)):
        names = {Key("cluster", "ceph"), Key("volume", f"i{number}"), Key("controller", f"c{number}")}
        assert view.part(host).keys() == names
        [found] = parts.changes(view.part(host), Desired())
        assert {one.key for one in found.create} == names
    with pytest.raises(UsageError, match="deleting it deletes its data; pass --yes"):
        await world.apply(Change(delete=(Key("controller", "c1"), Key("volume", "i1"))))


async def test_a_host_brings_what_it_has_and_leaves_with_it(world: World) -> None:
    engine = world.engine("h1")
    await engine.change(pair("a"))
    before = engine.desired()
    engine.close()
    with pytest.raises(ConflictError, match=r"2 objects of its own .*--adopt"):
        await world.join("h1", run=False)
    h1 = await world.join("h1", adopt=True)
    async with world.session() as one:
        await until(lambda: _seen(one, "h1"))
        assert (await one.reports())["h1"].problems == {}
        view = await one.view()
    assert set(view.objects) == set(before.entries)
    assert h1.executor.changes == [], "what it has is what is wanted: identities, files and sizes too"
    assert h1.executor.desired() == before
    assert await membership.leave(h1.settings, ADMIN) == 2
    async with world.session() as one:
        view = await one.view()
    assert (view.objects, view.hosts) == ({}, {})
    assert h1.executor.desired() == before


async def _seen(one: object, host: str) -> bool:
    return host in await one.reports()  # type: ignore[attr-defined]


async def test_another_host_of_the_same_name_is_not_let_in(world: World) -> None:
    h1 = await world.join("h1", run=False)
    with pytest.raises(ConflictError, match="another host has this name"):
        await membership.join(h1.settings, "another", h1.executor.desired(), ADMIN, adopt=False)
    await membership.join(h1.settings, "id-h1", h1.executor.desired(), ADMIN, adopt=False)


async def test_two_admins_at_once_do_not_undo_each_other(world: World) -> None:
    await world.join("h1", run=False)
    await world.apply(Change(create=(disk("v"),)), "h1")
    async with world.session() as one:
        view = await one.view()
        [volume] = view.desired().volumes()
        first, second = (Change(update=(replace(volume, size=size << 20),)) for size in (2, 3))
        writers = [one.writer(ADMIN) for _ in range(2)]
        proposals = [propose(view, change, {}, "") for change in (first, second)]
        await writers[0].write(proposals[0])
        with pytest.raises(StaleError):
            await writers[1].write(proposals[1])
    with pytest.raises(StaleError):
        await world.apply(replace(second, expect=(volume,)))


async def test_who_changed_what_is_in_the_same_transaction(world: World) -> None:
    await world.join("h1", run=False)
    await world.apply(Change(create=(disk("v"),)), "h1")
    async with world.session() as one:
        [volume] = (await one.view()).desired().volumes()
    await world.apply(Change(update=(replace(volume, size=2 << 20),)))
    event = (await audit.last(world.settings(), 1))[0]
    assert (event["who"], event["source"], event["action"], event["kind"], event["name"], event["on"]) == (
        *("user admin", "a test", "update", "volume", "v", "h1"),
    )
    assert (event["before"]["size"], event["after"]["size"]) == (1 << 20, 2 << 20)
    async with world.session() as one:
        events = await one.client.listing(one.keys.events)
        objects = await one.client.get(one.keys.object(Key("volume", "v")))
    assert objects
    assert max(item.revision for item in events.items.values()) == objects.revision


async def test_the_oldest_events_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "EVENTS_KEPT", 12)
    monkeypatch.setattr(writer, "BATCH", 10)
    await world.join("h1", run=False)
    await world.apply(many(25), "h1")
    kept = await audit.last(world.settings(), 100)
    assert len(kept) == 12
    assert kept[-1]["action"] == "end"


# -- a change of many transactions ---------------------------------------------------------------------------


def many(count: int) -> Change:
    return Change(create=tuple(disk(f"v{number}") for number in range(count)))


async def test_a_large_change_is_seen_as_a_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH", 10)
    h1 = await world.join("h1")
    await world.apply(many(35), "h1")
    assert len(h1.names) == 35
    assert [len(change.create) for change in h1.executor.changes] == [35]
    async with world.session() as one:
        assert await one.client.get(one.keys.change) is None
        assert await one.client.get(one.keys.writer) is None


async def test_nobody_changes_anything_beside_a_large_change(world: World) -> None:
    h1 = await world.join("h1")
    async with world.session() as one:
        await one.client.put(one.keys.change, json.dumps({"id": "x", "who": "eve", "host": "h9"}).encode())
        await one.client.put(one.keys.writer, b"x")
        with pytest.raises(ConflictError, match="eve on h9 is changing many objects"):
            await world.apply(pair("a"), "h1")
    assert h1.names == set()


async def test_a_change_that_was_abandoned_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its author dies after three of four transactions: the next one to change something finds its traces."""
    monkeypatch.setattr(writer, "BATCH", 10)
    h1 = await world.join("h1")
    await world.apply(Change(create=(disk("v3", 3 << 20),)), "h1")
    before = h1.executor.desired()
    async with world.session() as one:
        view = await one.view()
        proposal = propose(view, Change(create=many(3).create + tuple(disk(f"w{n}") for n in range(30))), {}, "h1")
        author, steps = one.writer(ADMIN), 0
        commit = author._client.commit

        async def dies(transaction: Transaction, witness: str) -> int | None:
            nonlocal steps
            steps += 1
            if steps > 3:
                raise asyncio.CancelledError
            return await commit(transaction, witness)

        author._client.commit = dies  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await author.write(proposal)
        author._client.commit = commit  # type: ignore[method-assign]
        assert len((await one.view()).objects) == 21
        assert await one.client.get(one.keys.writer)
        await one.client.write_if(Transaction({}, (), {one.keys.writer: None}))  # its lease ends
        with pytest.raises(StaleError, match="was never finished, and has been taken back"):
            await world.apply(pair("a"), "h1")
        assert set((await one.view()).objects) == {Key("volume", "v3")}
    await world.apply(pair("a"), "h1")
    assert h1.names == {"volume/v3", "volume/v-a", "controller/c-a"}
    assert before.entries.items() <= h1.executor.desired().entries.items()


# -- etcd loses its data ---------------------------------------------------------------------------------------


async def test_what_etcd_no_longer_names_is_not_deleted(world: World) -> None:
    h1 = await world.join("h1")
    await world.apply(pair("a"), "h1")
    before = h1.executor.desired()
    async with world.session() as one:
        await one.client.write_if(Transaction({}, (), {one.keys.object(Key("controller", "c-a")): None}))
        await until(lambda: _reported(one, "h1"))
        problems = (await one.reports())["h1"].problems
    assert "fleet import" in problems["controller/c-a"]
    assert h1.executor.desired() == before


async def test_objects_are_small(world: World) -> None:
    await world.join("h1", run=False)
    path = "/" + "x" * (MAX_BYTES - 50)
    with pytest.raises(UsageError, match=r"bytes in a fleet's store, at most 4096"):
        await world.apply(Change(create=(Volume("v", path=path),)), "h1")


def test_of_others_objects_a_host_reads_only_where_they_are() -> None:
    record = Declared.of(disk("v"), "h2")
    deleting = replace(record, deleting=True, force=True)
    shared = Declared.of(Remote("r", nqn="nqn.2026-11.org.example:r", paths=(RemotePath("192.0.2.1", 1),)), "")
    for one, elsewhere in ((record, Declared({}, "h2")), (deleting, Declared({}, "h2", True)), (shared, None)):
        raw = encode("it", one.to_json())
        assert declared_elsewhere(raw, "h1") == elsewhere
        assert declared_elsewhere(raw, "h2") is None
        assert Declared.from_json(json.loads(raw)) == one


async def test_there_is_no_such_fleet(world: World) -> None:
    world.name = "nothing"
    with pytest.raises(FleetError, match="has no fleet nothing"):
        await world.apply(pair("a"), "h1")


async def test_a_record_of_a_newer_version_is_named(world: World) -> None:
    async with world.session() as one:
        await one.client.put(one.keys.host("h1"), Put(b'{"name":"h1","id":"1","wings":2}').value)
        with pytest.raises(FleetError, match="'wings' in etcd: of a newer nvmuser"):
            await one.view()


async def test_an_etcd_that_lost_its_data_costs_nobody_theirs(tmp_path: Path) -> None:
    with running(tmp_path / "etcd") as etcd:
        async with a_world(etcd.url, tmp_path, "lost") as world:
            h1, h2 = await world.join("h1"), await world.join("h2")
            await world.apply(pair("a"), "h1")
            await world.apply(pair("b"), "h2")
            before, done = [one.executor.desired() for one in (h1, h2)], len(h1.executor.changes)
            etcd.kill()
            etcd.lose_data()
            etcd.start()
            await until(lambda: "may have lost its data" in h1.agent.trouble)
            for host, had in zip((h1, h2), before, strict=True):
                await write_back(host)
                assert host.executor.desired() == had
            await until(lambda: not h1.agent.trouble)
            async with world.session() as one:
                view = await one.view()
            assert {key.name: record.host for key, record in view.objects.items()} == {
                "v-a": "h1", "c-a": "h1", "v-b": "h2", "c-b": "h2",
            }  # fmt: skip
            async with world.session() as one:
                await until(lambda: is_live(one, "h1"))
            await world.apply(pair("c"), "h1")
            assert len(h1.executor.changes) == done + 1, "nothing else was changed"


async def test_an_etcd_that_went_back_and_on_again_is_not_followed(tmp_path: Path) -> None:
    """By its revision it might be right: others have changed more since than was lost."""
    with running(tmp_path / "etcd") as etcd:
        async with a_world(etcd.url, tmp_path, "back") as world:
            h1 = await world.join("h1")
            await world.join("h2", run=False)
            await world.apply(pair("old"), "h1")
            etcd.kill()
            shutil.copytree(etcd.directory / "data", tmp_path / "backup")
            etcd.start()
            await until(lambda: not h1.agent.trouble)
            await world.apply(Change(delete=(Key("controller", "c-old"), Key("volume", "v-old")), wipe=True))
            await world.end()
            etcd.kill()
            etcd.lose_data()
            shutil.copytree(tmp_path / "backup", etcd.directory / "data")
            etcd.start()
            for number in range(12):
                await world.apply(Change(create=(disk(f"x{number}"),)), "h2")
            async with world.session() as one:
                assert (await one.view()).revision > h1.executor.progress().revision
            await world.run(h1)
            await until(lambda: "went back in time: " in h1.agent.trouble)
            assert h1.names == set(), "what was deleted is not made anew"


async def write_back(host: FleetHost, *, drop: bool = False) -> None:
    """As `nvmuser fleet import`."""
    name = host.settings.host
    restored = await restore(host.settings, f"id-{name}", host.executor.desired(), ADMIN, drop=drop)
    host.executor.keep(restored.progress)


async def test_an_etcd_that_went_back_in_time_is_not_followed(tmp_path: Path) -> None:
    """Its backup has what was deleted since, and lacks what came since."""
    with running(tmp_path / "etcd") as etcd:
        async with a_world(etcd.url, tmp_path, "back") as world:
            h1 = await world.join("h1")
            await world.apply(pair("old"), "h1")
            etcd.kill()
            shutil.copytree(etcd.directory / "data", tmp_path / "backup")
            etcd.start()
            await until(lambda: not h1.agent.trouble)
            gone = Change(delete=(Key("controller", "c-old"), Key("volume", "v-old")), wipe=True)
            await world.apply(gone)
            await world.apply(pair("new"), "h1")
            before = h1.executor.desired()
            etcd.kill()
            etcd.lose_data()
            shutil.copytree(tmp_path / "backup", etcd.directory / "data")
            etcd.start()
            await until(lambda: "went back in time" in h1.agent.trouble)
            assert h1.executor.desired() == before
            with pytest.raises(UsageError, match=r"2 objects on host h1 that are not there .*--drop"):
                await write_back(h1)
            await write_back(h1, drop=True)
            async with world.session() as one:
                assert {key.name for key in (await one.view()).objects} == {"v-new", "c-new"}
            assert h1.executor.desired() == before
