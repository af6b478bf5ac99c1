"""What is promised to volumes and what is there: of file systems and of pools."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvmuser.doctor import space as doctor_space
from nvmuser.errors import UsageError
from nvmuser.hostfs.space import file_systems, mount_point
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Limits, Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.actual import Actual, Bdev, Lvstore
from nvmuser.reconcile.declare import declared
from nvmuser.reconcile.space import pools

MIB = 1 << 20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`free(n)`: every file system has n MiB free, of 100."""

    def set_free(mib: int) -> None:
        info = SimpleNamespace(f_blocks=100, f_bavail=mib, f_frsize=MIB)
        monkeypatch.setattr(os, "statvfs", lambda path: info)

    return set_free


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path)
    state.volumes.mkdir()
    return state


def change(before: Desired, state: StateDir, *create: Volume, update: tuple[Volume, ...] = ()) -> Desired:
    """Declare, and make the files, sparse, as the engine does."""
    after = declared(before, Change(create=create, update=update), state)
    for volume in after.volumes():
        with open(volume.path, "ab") as file:
            file.truncate(volume.size)
    return after


def test_two_volumes_on_a_file_system_that_holds_one(state: StateDir, free: Callable[[int], None]) -> None:
    free(60)
    one = change(Desired(), state, Volume("a", size=40 * MIB))
    with pytest.raises(UsageError) as caught:
        change(one, state, Volume("b", size=40 * MIB))
    assert str(caught.value) == (
        f"volume b: with it, 80M would be promised to 2 volumes on the file system at {mount_point(state.volumes)} and "
        "not written yet, and 60M are free; free some, or pass --thin to promise it all the same"
    )
    both = change(one, state, Volume("b", size=40 * MIB, thin=True))
    (space,) = file_systems(both.volumes())
    assert (space.short, space.promised, space.volumes) == (True, 80 * MIB, ("a", "b"))
    change(both, state, Volume("c", size=20 * MIB))  # what is thin takes its own risk


def test_what_is_written_is_promised_no_more(state: StateDir, free: Callable[[int], None]) -> None:
    free(60)
    one = change(Desired(), state, Volume("a", size=40 * MIB))
    with open(state.volumes / "a", "r+b") as file:
        file.write(bytes(range(256)) * 4096 * 30)
    free(30)
    a = one.get(Key("volume", "a"))
    assert isinstance(a, Volume)
    with pytest.raises(UsageError, match="volume a: 40M of it are not written yet, more than the 30M free on"):
        change(one, state, update=(replace(a, size=70 * MIB),))
    (space,) = file_systems(one.volumes())
    assert 9 * MIB < space.promised <= 10 * MIB
    assert not space.short
    change(one, state, Volume("b", size=20 * MIB))


def test_growth_is_counted(state: StateDir, free: Callable[[int], None]) -> None:
    free(60)
    one = change(Desired(), state, Volume("a", size=20 * MIB), Volume("b", size=20 * MIB))
    a = one.get(Key("volume", "a"))
    assert isinstance(a, Volume)
    with pytest.raises(UsageError, match="volume a: with it, 70M would be promised to 2 volumes"):
        change(one, state, update=(replace(a, size=50 * MIB),))
    change(one, state, update=(replace(a, size=40 * MIB),))


def test_one_that_is_larger_than_all_that_is_free(state: StateDir, free: Callable[[int], None]) -> None:
    free(60)
    with pytest.raises(UsageError, match="volume a: 61M is more than the 60M free on the file system at /"):
        change(Desired(), state, Volume("a", size=61 * MIB))


def test_other_changes_are_not_held_up(state: StateDir, free: Callable[[int], None]) -> None:
    free(60)
    one = change(Desired(), state, Volume("a", size=40 * MIB))
    free(0)
    declared(one, Change(create=(Volume("n", "null", size=MIB, volatile=True),)), state)
    declared(one, Change(delete=(Key("volume", "a"),), wipe=True), state)


def test_only_what_takes_space_is_judged(state: StateDir, free: Callable[[int], None]) -> None:
    free(60)
    one = change(Desired(), state, Volume("a", size=40 * MIB), Volume("t", size=40 * MIB, thin=True))
    a, t = (one.get(Key("volume", name)) for name in "at")
    assert isinstance(a, Volume)
    assert isinstance(t, Volume)
    free(0)
    limited = change(one, state, update=(replace(a, limits=Limits(iops=1000)),))
    change(limited, state, update=(a, replace(t, limits=Limits(mbps=5))))
    change(one, state, update=(replace(a, thin=True), replace(t, size=80 * MIB)))
    with pytest.raises(UsageError, match="volume t: with it, 80M would be promised to 2 volumes"):
        change(one, state, update=(replace(t, thin=False),))


def test_a_file_system_is_named_by_where_it_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/sys")
    assert mount_point(Path("/proc/self")) == Path("/proc")
    assert mount_point(tmp_path / "link" / "fs") in (Path("/proc"), Path("/proc/sys"))
    assert mount_point(Path("/")) == Path("/")


def test_doctor_says_what_is_promised_and_there(
    state: StateDir, free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(60)
    desired = change(Desired(), state, Volume("a", size=40 * MIB))
    monkeypatch.setattr(doctor_space.control, "load", lambda state: desired)
    (finding,) = doctor_space.space(state)
    assert (finding.level, finding.fix) == ("ok", "")
    free(30)
    (finding,) = doctor_space.space(state)
    assert finding.level == "warning"
    where = mount_point(state.volumes)
    assert finding.text == (
        f"file system at {where}: 30M of 100M free, and 40M promised to volumes and not written yet"
    )


def test_a_thin_pool_that_promises_more_than_it_has() -> None:
    objects = (
        Pool("p", base="disk", cluster_size=MIB),
        Volume("a", "lvol", pool="p", size=60 * MIB, thin=True),
        Volume("s", "lvol", pool="p", snapshot_of="a", size=60 * MIB),
        Volume("thick", "lvol", pool="p", size=30 * MIB),
    )
    desired = Desired({one.key: Entry(one) for one in objects})

    def lvol(name: str, size: int, clusters: int) -> Bdev:
        return Bdev(name, name, size * MIB, 512, (f"p/{name}",), lvstore="u", allocated_clusters=clusters)

    bdevs = {one.name: one for one in (lvol("a", 60, 10), lvol("s", 60, 20), lvol("thick", 30, 30))}
    store = Lvstore("p", "u", "disk", MIB, 99, 39)
    space = pools(desired, Actual(bdevs=bdevs, lvstores={"p": store}))["p"]
    assert (space.total, space.free, space.promised, space.short) == (99 * MIB, 39 * MIB, 50 * MIB, True)
    assert space.volumes == ("a", "thick")
    assert str(space) == "pool p: 39M of 99M free, and 50M promised to volumes and not written yet"
    assert pools(desired, Actual()) == {}
