"""What is too small, or does not fit: the reason names the sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from test_mirrors import mirror_of, planned, spdk, wanted

from nvmuser.errors import RpcServerError, UsageError
from nvmuser.model.change import Change, next_desired, replace_member
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import reasons
from nvmuser.reconcile.calls import Call
from nvmuser.rpc import methods
from nvmuser.rpc.client import Client

MIB = 1 << 20
SMALL = Volume("v", size=MIB)


@pytest.mark.parametrize(
    "below",
    [
        (SMALL,),
        (replace(SMALL, name="a"), Volume("v", "delay", base="a", latency_us=1)),
        (Volume("a", size=2 * MIB), Volume("b", size=9 * MIB), Volume("v", "raid1", members=("a", "b"))),
        (Volume("a", size=MIB // 2), Volume("b", size=MIB // 2), Volume("v", "concat", members=("a", "b"))),
    ],
)
def test_a_pool_takes_a_size(below: tuple[Volume, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        next_desired(Desired(), Change(create=(*below, Pool("p", base="v"))), lambda volume: volume)
    assert str(caught.value) == (
        "pool p: volume v has 1M, and with clusters of 4M a pool takes 12M or more; take a larger volume, or a smaller "
        "--cluster-size"
    )
    next_desired(Desired(), Change(create=(*below, Pool("p", base="v", cluster_size=1 << 16))), lambda volume: volume)


@pytest.mark.parametrize(("size", "fits"), [(64 * MIB, False), (63 * MIB, True)])
def test_a_member_that_is_too_small_does_not_take_the_place_of_another(size: int, fits: bool) -> None:
    desired = wanted()
    desired = next_desired(desired, Change(update=(replace_member(mirror_of(desired), "a", "c"),)), lambda one: one)
    actual = spdk(desired, "abc", "ab")
    raid = replace(actual.bdevs["m"], size=size)
    found = planned(desired, replace(actual, bdevs={**actual.bdevs, "m": raid}))
    if fits:
        assert [call.request.method for call in found.calls] == [
            "bdev_raid_remove_base_bdev",
            "bdev_raid_add_base_bdev",
        ]
        return
    assert found.calls == ()
    (problem,) = found.conflicts
    assert str(problem) == "volume m: member c is too small: it has 64M, and the mirror takes 65M of each"


async def test_a_full_pool_is_named_with_what_is_free() -> None:
    pool, disk = Pool("p", base="b"), Volume("d", "lvol", pool="p", size=100 << 30)
    call = Call(methods.lvol_create("d", "p", disk.size, thin=False), Key("volume", "d"))

    class Pools:
        async def call(self, method: str, params: dict[str, Any]) -> list[dict[str, int]]:
            assert (method, params) == ("bdev_lvol_get_lvstores", {"lvs_name": "p"})
            return [{"free_clusters": 7, "total_data_clusters": 11, "cluster_size": 4 * MIB}]

    async def why(message: str, size: int = disk.size) -> str:
        desired = Desired({one.key: Entry(one) for one in (pool, replace(disk, size=size))})
        error = RpcServerError(call.request.method, {}, -32602, message)
        return await reasons.explain(call, error, desired, StateDir(Path("/s")), cast(Client, Pools()))

    assert await why("No space left on device") == (
        "create failed: No space left on device (bdev_lvol_create): pool p has 28M free of 44M; take less, grow its "
        "base b, or pass --thin for a new volume"
    )
    for message in ("No space left on device", "Cannot allocate memory"):
        assert (await why(message, 4 * MIB)).endswith(
            "(bdev_lvol_create): pool p has 28M free of 44M, but no room for metadata: delete volumes or snapshots in "
            "it, or free space below it"
        )
    assert await why("Invalid argument") == "create failed: Invalid argument (bdev_lvol_create)"
