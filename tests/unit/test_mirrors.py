"""Mirrors without a member: what is planned, what is recorded, and which members may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nvmuser.cli.status import mirror_line
from nvmuser.errors import ConflictError
from nvmuser.model.change import Change, next_desired, replace_member
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.model.spec import export
from nvmuser.reconcile import mirrors
from nvmuser.reconcile.actual import Actual, Bdev, Raid
from nvmuser.reconcile.calls import Plan
from nvmuser.reconcile.plan import plan

MIB = 1 << 20


def wanted() -> Desired:
    files = tuple(Volume(name, size=64 * MIB, path=f"/v/{name}") for name in ("a", "b", "c"))
    create = (*files, Volume("m", "raid1", members=("a", "b")))
    desired = next_desired(Desired(), Change(create=create), lambda volume: volume)
    return Desired({key: replace(entry, provisioned=True) for key, entry in desired.entries.items()})


def mirror_of(desired: Desired) -> Volume:
    volume = desired.get(Key("volume", "m"))
    assert isinstance(volume, Volume)
    return volume


def spdk(desired: Desired, files: str, members: str, rebuilding: str = "", *, online: bool = True) -> Actual:
    """With the bdevs of `files`, and a raid of `members`."""
    bdevs = {name: Bdev(name, volume.uuid, 64 * MIB, 512) for name in files for volume in desired.volumes()
             if volume.name == name}  # fmt: skip
    uuid = mirror_of(desired).uuid
    if online:
        bdevs["m"] = Bdev("m", uuid, 60 * MIB, 512)
    return Actual(bdevs=bdevs, raids={"m": Raid("m", uuid, online, tuple(members), rebuilding, 43)})


def planned(desired: Desired, actual: Actual, *without: Key) -> Plan:
    return plan(desired, actual, Path, frozenset(without))


def calls(found: Plan) -> list[tuple[str, dict[str, object]]]:
    return [
        (call.request.method, dict(call.request.params)) for call in found.calls if call.object == Key("volume", "m")
    ]


def test_a_mirror_waits_for_its_members_until_it_is_started_without() -> None:
    desired = wanted()
    actual = spdk(desired, "bc", "b", online=False)
    assert Key("volume", "m") in planned(desired, actual).waiting
    assert calls(planned(desired, actual, Key("volume", "m"))) == [("bdev_raid_start_degraded", {"name": "m"})]


def test_what_misses_writes_is_recorded_and_never_served() -> None:
    desired = wanted()
    (entry,), refused = mirrors.degraded(desired, spdk(desired, "bc", "b", online=False))
    assert isinstance(entry.object, Volume)
    assert (entry.object.stale, refused) == (("a",), {})
    desired = Desired({**desired.entries, Key("volume", "m"): entry})
    assert "stale" not in str(export(desired))
    entries, refused = mirrors.degraded(desired, spdk(desired, "ac", "a", online=False))
    assert entries == []
    assert refused[Key("volume", "m")].message == "not served: only a is there, which missed writes; bring b back"
    (entry,) = mirrors.noted(desired, spdk(desired, "abc", "ab"))
    assert isinstance(entry.object, Volume)
    assert entry.object.stale == ()


def test_a_member_that_is_there_is_added_once_nothing_is_being_rebuilt() -> None:
    desired = wanted()
    add = ("bdev_raid_add_base_bdev", {"raid_bdev": "m", "base_bdev": "a"})
    assert calls(planned(desired, spdk(desired, "abc", "b"))) == [add]
    lost = planned(desired, spdk(desired, "bc", "b")).calls
    assert [(call.request.method, call.after) for call in lost] == [
        ("bdev_aio_create", ()),  # which fails where its file is gone, and stops what comes after it
        ("bdev_raid_add_base_bdev", (0,)),
    ]
    assert calls(planned(desired, spdk(desired, "abc", "ab", rebuilding="a"))) == []


def test_a_member_is_replaced_in_order_and_its_volume_may_go_at_once() -> None:
    desired = wanted()
    after = replace_member(mirror_of(desired), "a", "c")
    desired = next_desired(
        desired, Change(update=(after,), delete=(Key("volume", "a"),), wipe=True), lambda volume: volume
    )
    found = planned(desired, _with_old(desired))
    methods = [call.request.method for call in found.calls]
    assert methods == ["bdev_raid_remove_base_bdev", "bdev_aio_delete", "bdev_raid_add_base_bdev"]
    assert [call.after for call in found.calls] == [(), (0,), (0,)]


def _with_old(desired: Desired) -> Actual:
    """The raid as it is before the change: with `a`, which is being deleted."""
    actual = spdk(desired, "bc", "ab")
    old = next(one for one in desired.deleted() if isinstance(one, Volume))
    return replace(actual, bdevs={**actual.bdevs, "a": Bdev("a", old.uuid, 64 * MIB, 512)})


def test_the_last_member_with_the_data_stays() -> None:
    desired = wanted()
    mirror = replace(mirror_of(desired), stale=("a",))
    entries = {**desired.entries, Key("volume", "m"): replace(desired.entries[Key("volume", "m")], object=mirror)}
    with pytest.raises(ConflictError, match="the newest data is on b alone"):
        next_desired(Desired(entries), Change(update=(replace_member(mirror, "b", "c"),)), lambda volume: volume)
    after = next_desired(Desired(entries), Change(update=(replace_member(mirror, "a", "c"),)), lambda volume: volume)
    assert (mirror_of(after).members, mirror_of(after).stale) == (("c", "b"), ("c",))
    with pytest.raises(ConflictError, match="c is no member of it; its members: a, b"):
        replace_member(mirror, "c", "a")
    with pytest.raises(ConflictError, match="b is a member of it already"):
        replace_member(mirror, "a", "b")


def test_status_says_who_serves_what_is_missing_and_how_far_it_is() -> None:
    desired = wanted()
    (missing,) = mirrors.each(desired, spdk(desired, "bc", "b"))
    assert mirror_line(missing.to_json()).startswith("volume m: served by b alone; a is missing: bring it back")
    (rebuilt,) = mirrors.each(desired, spdk(desired, "abc", "ab", rebuilding="a"))
    assert mirror_line(rebuilt.to_json()) == "volume m: served by b alone; a is being rebuilt, 43 %"
