"""Room for the metadata of pools, and bases that are opened once more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.hostfs.reserve import reserve
from nvmuser.model.blobstore import head_size, least_size
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.objects import AnyObject, Pool, Volume
from nvmuser.reconcile import pool_room, reasons
from nvmuser.reconcile.actual import Actual, ActualNamespace, Bdev, Lvstore, Subsystem
from nvmuser.reconcile.calls import Problem
from nvmuser.reconcile.pool_room import parts
from nvmuser.reconcile.reopen import to_close

MIB, TIB = 1 << 20, 1 << 40
BASE = Volume("a", size=48 * MIB, uuid="1", path="/v/a")
POOL = Pool("p", base="a")


def desired(*objects: AnyObject, provisioned: bool = True) -> Desired:
    return Desired({one.key: Entry(one, provisioned=provisioned) for one in objects})


@pytest.mark.parametrize(
    ("size", "cluster", "head"), [(48 * MIB, 1 << 16, 4 << 12), (TIB, 4 * MIB, 28 << 12), (MIB, 4 * MIB, 4 << 12)]
)
def test_the_head_of_a_blobstore(size: int, cluster: int, head: int) -> None:
    assert head_size(size, cluster) == head


@pytest.mark.parametrize(("cluster", "least"), [(1 << 16, 3 << 16), (4 * MIB, 12 * MIB)])
def test_the_smallest_pool(cluster: int, least: int) -> None:
    assert least_size(cluster) == least


def test_what_is_reserved_is_there_and_holds_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.truncate(MIB)
        file.seek(8192)
        file.write(b"x" * 4096)
    reserve(str(path), 1 << 16)
    assert path.stat().st_blocks * 512 >= 1 << 16
    assert path.stat().st_size == MIB
    assert path.read_bytes() == bytes(8192) + b"x" * 4096 + bytes(MIB - 12288)
    reserve(str(path), 2 * MIB)
    assert path.stat().st_size == MIB
    reserve("/dev/null", 4096)
    with pytest.raises(SetupError, match="No such file"):
        reserve(str(tmp_path / "none"), 4096)


def test_which_files_hold_the_head() -> None:
    b = Volume("b", size=64 * MIB, path="/v/b")
    mirror = Volume("m", backend="raid1", members=("a", "b"))
    slow = Volume("s", backend="delay", base="m", latency_us=1)
    on_slow = desired(BASE, b, mirror, slow, Pool("p", base="s"))
    assert list(parts(Pool("p", base="s"), on_slow)) == [(BASE, MIB + (4 << 12)), (b, MIB + (4 << 12))]
    assert list(parts(POOL, desired(BASE, POOL))) == [(BASE, 4 << 12)]


def test_a_pool_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, length: int) -> None:
        raise SetupError(f"{path}: No space left on device")

    monkeypatch.setattr(pool_room, "reserve", full)
    (problem,) = pool_room.reserve_all(desired(BASE, POOL)).values()
    assert str(problem) == (
        "pool p: /v/a: No space left on device: its metadata needs 16K there, without which it does not come back "
        "after a crash; free some, then `nvmuser reconcile`"
    )
    assert pool_room.reserve_all(desired(BASE, POOL, provisioned=False)) == {}


def test_what_waits_for_a_failure_says_so() -> None:
    disk = Volume("d", backend="lvol", pool="p", size=MIB)
    both, wanted = {POOL.key, disk.key}, desired(BASE, POOL, disk)
    found = reasons.missing(both, {POOL.key: Problem(POOL.key, "full")}, wanted, Actual())
    assert {key: problem.message for key, problem in found.items()} == {disk.key: "waits for what failed below it"}
    assert reasons.missing(both, {}, wanted, Actual())[disk.key].message.startswith(
        "not there: what it lies on is missing"
    )


def test_a_base_is_opened_once_more_where_nobody_has_it() -> None:
    bdev, wanted = Bdev("a", "1", 48 * MIB, 512), desired(BASE, POOL)
    (request,) = to_close(wanted, Actual(bdevs={"a": bdev}))
    assert (request.method, request.params) == ("bdev_aio_delete", {"name": "a"})
    store = Lvstore("p", "u", "a", 4 * MIB, 10, 10)
    shown = Subsystem("nqn", "s", 1, 1, namespaces=(ActualNamespace(1, "a"),))
    for actual in (
        Actual(bdevs={"a": bdev}, lvstores={"p": store}),
        Actual(bdevs={"a": replace(bdev, claimed=True)}),
        Actual(bdevs={"a": replace(bdev, uuid="2")}),
        Actual(bdevs={"a": bdev}, subsystems={"nqn": shown}),
        Actual(),
    ):
        assert to_close(wanted, actual) == []
    assert to_close(desired(BASE, POOL, provisioned=False), Actual(bdevs={"a": bdev})) == []


def test_what_dies_with_its_bdev_stays_open() -> None:
    memory = Volume("a", backend="malloc", size=48 * MIB, uuid="1", volatile=True)
    assert to_close(desired(memory, POOL), Actual(bdevs={"a": Bdev("a", "1", 48 * MIB, 512)})) == []
