"""Volumes that a pool has no room for are refused when they are declared, as far as the size of its base is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvmuser.errors import UsageError
from nvmuser.model.capacity import check_pools
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Pool, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.declare import declared

MIB = 1 << 20
POOL = (Volume("root", path="/r", size=128 * MIB), Pool("p", base="root", cluster_size=MIB))


def after(before: Desired, *create: AnyObject, **parts: Any) -> Desired:
    """Declared without a target."""
    change = Change(create, **parts)
    found = next_desired(before, change, lambda volume: volume)
    check_pools(before, found, change)
    return found


def lvol(name: str, mib: int, **fields: Any) -> Volume:
    return Volume(name, "lvol", pool="p", size=mib * MIB, **fields)


def test_one_that_is_larger_than_the_base() -> None:
    pool = after(Desired(), *POOL)
    with pytest.raises(UsageError) as caught:
        after(pool, lvol("l", 1024))
    assert str(caught.value) == (
        "volume l: 1G is more than the 128M of pool p, which is on volume root; take less, or pass --thin to promise "
        "it all the same"
    )
    with pytest.raises(UsageError, match="volume l: 1G is more than"):
        after(Desired(), *POOL, lvol("l", 1024))
    after(pool, lvol("l", 1024, thin=True))


def test_all_that_is_reserved_is_counted() -> None:
    one = after(Desired(), *POOL, lvol("a", 100))
    with pytest.raises(UsageError, match="volume b: with it, 150M would be reserved for 2 volumes, of the 128M of"):
        after(one, lvol("b", 50))
    two = after(one, lvol("b", 20), lvol("t", 500, thin=True))
    with pytest.raises(UsageError, match="volume b: with it, 130M would be reserved"):
        after(two, update=(lvol("b", 30),))


def test_what_a_snapshot_has_made_thin_reserves_nothing() -> None:
    one = after(Desired(), *POOL, lvol("a", 100), Volume("s", "lvol", pool="p", snapshot_of="a"))
    after(one, Volume("c", "lvol", pool="p", clone_of="s"), lvol("b", 100))


@pytest.mark.parametrize(("backend", "mib"), [("raid1", 64), ("concat", 128)])
def test_the_size_of_a_base_that_lies_on_others(backend: str, mib: int) -> None:
    below = (Volume("x", path="/x", size=64 * MIB), Volume("y", path="/y", size=64 * MIB))
    pool = (*below, Volume("root", backend, members=("x", "y")), POOL[1])
    after(Desired(), *pool, lvol("l", mib))
    with pytest.raises(UsageError, match="is more than the"):
        after(Desired(), *pool, lvol("l", mib + 1))


def test_where_only_a_target_knows_the_size_it_judges() -> None:
    far = Remote("far", "nqn.2026-11.org.example:far", (RemotePath("10.0.0.1"),))
    made = after(Desired(), far, Volume("root", "remote", remote="far", remote_nsid=1), POOL[1], lvol("l", 1 << 20))
    assert made.get(Key("volume", "l"))


def test_it_is_judged_when_it_is_declared(tmp_path: Path) -> None:
    pool = declared(Desired(), Change((Volume("root", size=128 * MIB), POOL[1])), StateDir(tmp_path))
    with pytest.raises(UsageError, match="volume l: 1G is more than the 128M of pool p"):
        declared(pool, Change((lvol("l", 1024),)), StateDir(tmp_path))
