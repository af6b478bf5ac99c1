"""The planner: from anything that SPDK can have to anything that can be wanted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from spdk_model import ModelSpdk, Refused

from nvmuser.errors import NvmuserError
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Limits, Namespace, Pool, TargetSettings, Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual, Bdev
from nvmuser.reconcile.plan import plan
from nvmuser.reconcile.status import status_of

MIB = 1 << 20


def directory(name: str) -> Path:
    return Path("/run/target") / name


def prepared(volume: Volume) -> Volume:
    return replace(volume, path=f"/v/{volume.name}", owned=True) if volume.backend == "file" else volume


def declare(desired: Desired, **change: Any) -> Desired:
    return next_desired(desired, Change(**change), prepared)


def settle(desired: Desired, spdk: ModelSpdk) -> Desired:
    """What the engine does: plan, carry out, look again, until there is nothing to do."""
    for _ in range(8):
        for one in desired.volumes():
            if one.backend == "file":
                spdk.file_sizes[one.path] = one.size
        current = plan(desired, spdk.actual, directory)
        entries = dict(desired.entries)
        for key in {*current.adopted, *(call.object for call in current.calls if call.provisions)}:
            if backends.made_once(entries[key].object):
                entries[key] = replace(entries[key], provisioned=True)
        desired = Desired(entries)
        if not current.calls:
            return desired
        spdk.apply(current)
    raise AssertionError(f"not settled: {current.calls}")


def forget(desired: Desired) -> Desired:
    return Desired({key: entry for key, entry in desired.entries.items() if not entry.deleting})


NAMES = [f"v{n}" for n in range(6)]


@st.composite
def wanted(draw: st.DrawFn) -> Change:
    """Volumes on volumes, a pool, controllers that share them out."""
    free: list[str] = []
    objects: list[AnyObject] = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6)):
        backend = draw(st.sampled_from(["file", "null", "malloc", "delay", "raid1"]))
        size = draw(st.integers(1, 4)) * 64 * MIB
        limits = Limits(iops=draw(st.sampled_from([0, 1000, 5000])))
        if backend == "delay" and free:
            objects.append(Volume(name, "delay", base=free.pop(), volatile=True, limits=limits))
        elif backend == "raid1" and len(free) > 1:
            objects.append(Volume(name, "raid1", members=(free.pop(), free.pop()), volatile=True, limits=limits))
        else:
            backend = backend if backend in ("file", "null", "malloc") else "null"
            objects.append(Volume(name, backend, size=size, volatile=backend != "file", limits=limits))
        free.append(name)
    if draw(st.booleans()) and free:
        objects.append(Pool("p", base=free.pop()))
        for name in draw(st.lists(st.sampled_from(["l0", "l1"]), unique=True)):
            objects.append(Volume(name, "lvol", size=16 * MIB, pool="p", thin=True, volatile=True))
            free.append(name)
    for name in draw(st.lists(st.sampled_from(["c0", "c1", "c2"]), unique=True)):
        few = st.lists(st.sampled_from(free or ["-"]), unique=True, max_size=3 if free else 0)
        shown = draw(few)
        numbers = draw(st.permutations(range(1, 5)))
        objects.append(Controller(name, tuple(map(Namespace, shown, numbers))))
        free = [one for one in free if one not in shown]
    return Change(create=tuple(objects), wipe=True)


def assert_agrees(desired: Desired, spdk: ModelSpdk) -> None:
    """Independently of the planner: what is wanted is there."""
    for one in desired.volumes():
        bdev = backends.find(one, desired, spdk.actual)
        assert bdev
        assert bdev.limits == one.limits
        assert bdev.size >= one.size
    for controller in desired.controllers():
        subsystem = spdk.subsystems[controller.nqn]
        assert ("VFIOUSER", str(directory(controller.name))) in subsystem.listeners
        shown = {ns.nsid: ns for ns in subsystem.namespaces}
        for namespace in controller.namespaces:
            volume = desired.get(Key("volume", namespace.volume))
            assert isinstance(volume, Volume)
            found = shown[namespace.nsid]
            assert (found.uuid, found.nguid, found.eui64) == (volume.uuid, volume.nguid, volume.eui64)
            assert spdk.find(backends.bdev_name(volume, desired)).name == found.bdev
    for gone in desired.deleted():
        if isinstance(gone, Controller):
            assert gone.nqn not in spdk.subsystems
        elif isinstance(gone, Volume):
            assert not (found_bdev := backends.find(gone, desired, spdk.actual)) or found_bdev.uuid != gone.uuid


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(wanted(), wanted(), st.data())
def test_from_any_state_to_any_other(first: Change, second: Change, data: st.DataObject) -> None:
    spdk = ModelSpdk()
    try:
        before = settle(declare(Desired(), **vars(first)), spdk)
        after = _redeclared(before, second)
    except NvmuserError:
        assume(False)
        return
    _disturb(spdk, data)
    settled = settle(after, spdk)
    assert_agrees(settled, spdk)
    assert plan(settled, spdk.actual, directory).calls == ()
    assert plan(settled, spdk.actual, directory).conflicts == ()


def _redeclared(before: Desired, second: Change) -> Desired:
    """Everything of before goes, but for what the second has too: that stays, as the second has it.

    What the second has under the same name, but otherwise, goes and does not come: a name is free only
    afterwards.
    """
    kept, new = list[AnyObject](), list[AnyObject]()
    for one in second.create:
        entry = before.entries.get(one.key)
        if entry is None:
            new.append(one)
        elif not isinstance(one, Volume) or _alike(one, entry.object):
            kept.append(_as_before(one, entry.object))
    gone = tuple(key for key in before.entries if key not in {one.key for one in kept})
    return declare(before, create=tuple(new), update=tuple(kept), delete=gone, wipe=True)


def _as_before(one: AnyObject, was: AnyObject) -> AnyObject:
    if isinstance(one, Volume) and isinstance(was, Volume):
        return replace(was, limits=one.limits, size=max(one.size, was.size))
    return one


def _alike(one: Volume, was: AnyObject) -> bool:
    grows = one.backend in ("file", "null")
    return (
        isinstance(was, Volume)
        and (one.backend, one.base, one.members, one.pool) == (was.backend, was.base, was.members, was.pool)
        and (grows or one.size <= was.size)
    )


def _disturb(spdk: ModelSpdk, data: st.DataObject) -> None:
    """Somebody was at it with `nvmuser rpc`, or the target died."""
    for subsystem in list(spdk.subsystems.values()):
        for ns in subsystem.namespaces:
            if data.draw(st.integers(0, 3)) == 0:
                spdk.nvmf_subsystem_remove_ns(subsystem.nqn, ns.nsid)
        if data.draw(st.integers(0, 4)) == 0:
            spdk.nvmf_delete_subsystem(subsystem.nqn)
    for bdev in list(spdk.bdevs.values()):
        if bdev.name in spdk.bdevs and data.draw(st.integers(0, 3)) == 0:
            spdk.bdev_set_qos_limit(bdev.name, 9000, 0, 0, 0)
    if data.draw(st.booleans()):
        spdk.bdev_null_create("stranger", 2048, 512, "00000000-0000-4000-8000-000000000001")
        if data.draw(st.booleans()):
            spdk.nvmf_create_subsystem("nqn.2020-01.x:s", "S", "m", True, 32, 1, 9)
            spdk.nvmf_subsystem_add_ns("nqn.2020-01.x:s", {"nsid": 1, "bdev_name": "stranger"})
    if (
        data.draw(st.integers(0, 3)) == 0
        and not spdk.lvstores
        and not any(user.startswith("raid") for user in spdk.claims.values())
    ):
        sizes = spdk.file_sizes
        spdk.__dict__.update(vars(ModelSpdk(file_sizes=sizes)))


def _simple() -> tuple[Desired, ModelSpdk]:
    desired = declare(
        Desired(),
        create=(
            Volume("a", "null", size=64 * MIB, volatile=True),
            Volume("b", "null", size=64 * MIB, volatile=True),
            Controller("c", (Namespace("a"), Namespace("b"))),
        ),
    )
    spdk = ModelSpdk()
    return settle(desired, spdk), spdk


def test_waves_are_few() -> None:
    desired = declare(
        Desired(),
        create=tuple(
            itertools.chain.from_iterable(
                (Volume(f"v{n}", "null", size=MIB, volatile=True), Controller(f"c{n}", (Namespace(f"v{n}"),)))
                for n in range(50)
            )
        ),
    )
    first = plan(desired, ModelSpdk().actual, directory)
    assert len(first.calls) == 1 + 50 * 4
    assert len(first.waves()) == 3


def test_what_is_foreign_is_told_and_let_be() -> None:
    desired, spdk = _simple()
    spdk.bdev_null_create("stranger", 2048, 512, "00000000-0000-4000-8000-000000000001")
    nqn = "nqn.2026-11.org.nvmuser:c"
    spdk.nvmf_subsystem_add_ns(nqn, {"nsid": 7, "bdev_name": "stranger"})
    spdk.nvmf_subsystem_add_listener(nqn, {"trtype": "VFIOUSER", "traddr": "/elsewhere"})
    found = plan(desired, spdk.actual, directory)
    assert found.calls == ()
    assert found.foreign == (
        "bdev stranger",
        "listener /elsewhere of controller c",
        "namespace 7 of controller c (bdev stranger)",
    )


def test_a_strangers_bdev_of_our_name_conflicts_and_stops_what_lies_on_it() -> None:
    desired, _ = _simple()
    spdk = ModelSpdk()
    spdk.bdev_null_create("a", 2048, 512, "00000000-0000-4000-8000-000000000001")
    found = plan(desired, spdk.actual, directory)
    assert [str(one) for one in found.conflicts] == [
        "volume a: bdev a exists and is not ours (UUID 00000000-0000-4000-8000-000000000001); "
        "delete it, or choose another name"
    ]
    spdk.apply(found)
    (subsystem,) = spdk.subsystems.values()
    assert [ns.nsid for ns in subsystem.namespaces] == [2]


def test_a_deleted_volume_that_a_stranger_shows_stays() -> None:
    desired, spdk = _simple()
    spdk.nvmf_delete_subsystem("nqn.2026-11.org.nvmuser:c")
    spdk.nvmf_create_subsystem("nqn.2020-01.x:s", "S", "m", True, 32, 1, 9)
    spdk.nvmf_subsystem_add_ns("nqn.2020-01.x:s", {"nsid": 1, "bdev_name": "a"})
    desired = declare(desired, delete=(Key("controller", "c"), Key("volume", "a"), Key("volume", "b")))
    found = plan(desired, spdk.actual, directory)
    assert [call.request.params for call in found.calls] == [{"name": "b"}]
    assert "nqn.2020-01.x:s, which is not ours" in str(found.conflicts[0])


def test_a_pool_is_made_once_only() -> None:
    base = Volume("a", "null", size=256 * MIB, volatile=True)
    desired = declare(Desired(), create=(base, Pool("p", base="a")))
    spdk = ModelSpdk()
    desired = settle(desired, spdk)
    assert desired.entries[Key("pool", "p")].provisioned
    spdk = ModelSpdk()
    desired = settle(desired, spdk)
    assert list(spdk.bdevs) == ["a"]
    assert not spdk.lvstores
    assert plan(desired, spdk.actual, directory).waiting == {Key("pool", "p")}


def test_a_pool_grows_with_what_it_lies_on() -> None:
    base = Volume("a", "null", size=256 * MIB, volatile=True)
    spdk = ModelSpdk()
    desired = settle(declare(Desired(), create=(base, Pool("p", base="a"))), spdk)
    before = spdk.lvstores["p"].free_clusters
    desired = declare(desired, update=(replace(base, size=512 * MIB),))
    settle(desired, spdk)
    assert spdk.lvstores["p"].free_clusters == before + 64


def test_a_wrongly_identified_namespace_is_put_right() -> None:
    desired, spdk = _simple()
    nqn = "nqn.2026-11.org.nvmuser:c"
    spdk.nvmf_subsystem_remove_ns(nqn, 1)
    spdk.nvmf_subsystem_add_ns(nqn, {"nsid": 1, "bdev_name": "a", "uuid": "x"})
    settle(desired, spdk)
    assert_agrees(desired, spdk)


def test_how_the_target_runs_is_mended_by_another_process() -> None:
    desired = declare(Desired(), create=(TargetSettings(profile="balanced", cores=(1, 2)),))
    assert plan(desired, Actual(profile="balanced", cores=(1, 2)), directory).restart == ()
    found = plan(desired, Actual(profile="eco", cores=(3,)), directory)
    assert found.calls == ()
    assert [one.message for one in found.restart] == [
        "profile balanced, not eco, cores 1 2, not 3: takes effect with `nvmuser target restart`"
    ]
    assert status_of(desired, Actual(profile="eco"), found).drifted == (Key("target", "spdk"),)
    assert plan(Desired(), Actual(profile="eco"), directory).restart == ()


def test_only_what_holds_metadata_is_examined() -> None:
    pool = (Volume("a", "file", size=64 * MIB), Pool("p", base="a"))
    mirror = (*(Volume(name, size=64 * MIB) for name in "bcd"), Volume("m", "raid1", members=("b", "c")))
    desired = declare(Desired(), create=(*pool, *mirror))
    assert backends.to_examine(desired, Actual()) == []
    made = {key: replace(entry, provisioned=True) for key, entry in desired.entries.items()}
    assert backends.to_examine(Desired(made), Actual()) == ["a", "b", "c"]
    there = {"a": Bdev("a", made[Key("volume", "a")].object.uuid, 64 * MIB, 512)}  # type: ignore[union-attr]
    assert backends.to_examine(Desired(made), Actual(bdevs=there)) == ["b", "c"]


def test_the_model_refuses_what_spdk_refuses() -> None:
    _, spdk = _simple()
    with pytest.raises(Refused, match="claimed"):
        spdk.nvmf_subsystem_add_ns("nqn.2026-11.org.nvmuser:c", {"nsid": 9, "bdev_name": "a"})


def test_entries_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Entry(Pool("p", base="a")).deleting = True  # type: ignore[misc]
