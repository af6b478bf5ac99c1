"""Sizes and names as people bring them, and that a volume is never smaller than asked."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmuser.errors import ConflictError, UsageError
from nvmuser.model import spec as specs
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.names import check_name
from nvmuser.model.objects import Pool, Volume
from nvmuser.model.sizes import MIB, approximate, format_size, parse_size, round_up
from nvmuser.rpc import methods

KIB, GIB = 1 << 10, 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB), ("1G", GIB), ("1GiB", GIB), ("2 tb", 2 << 40), ("4096", 4096), (4096, 4096), ("0", 0),
        ("20Gi", 20 * GIB), ("1.5G", 3 << 29), ("1.5Ti", 3 << 39), ("0.5K", 512), ("100B", 100), (" 1P ", 1 << 50),
        ("1.1G", 1181118464), ("0.001K", 4096), ("1600K", 1600 * KIB), ("2.0m", 2 * MIB),
    ],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1G", "1X", "one", "1 G B", "1.5", "1i", "1.G", ".5G", "1,5G", "٣G", "9" * 5000, "1e3", "1GG"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="size "):
        parse_size(text)


def test_more_than_any_disk() -> None:
    with pytest.raises(UsageError, match="more than 4096P"):
        parse_size("5000P")


@given(st.integers(0, 1 << 55))
def test_sizes_are_read_as_they_are_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 9999), st.integers(0, 999), st.sampled_from("KMGT"))
def test_a_fraction_is_never_rounded_down(whole: int, thousandths: int, unit: str) -> None:
    exact = (whole + Fraction(thousandths, 1000)) * (KIB ** (1 + "KMGT".index(unit)))
    size = parse_size(f"{whole}.{thousandths:03}{unit}i")
    assert exact <= size < exact + 4096
    assert size == exact or size % 4096 == 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5K"),
        (1363 * MIB, "1.33G"),
        (1023 << 40, "1023T"),
    ],
)
def test_approximate_sizes_are_short(size: int, text: str) -> None:
    assert approximate(size) == text


@pytest.mark.parametrize("name", ["pvc-0f1e2d3c-4b5a-4697-8879-6a5b4c3d2e1f", "a" * 63, "0", "a.b_c-d"])
def test_names_that_people_bring(name: str) -> None:
    assert Volume(name, size=MIB).key == Key("volume", name)
    check_name("guest", name)


# -- never less than asked --------------------------------------------------------------------------------------------


def declare(desired: Desired, *objects: Any, **change: Any) -> Desired:
    return next_desired(desired, Change(create=objects, **change), lambda volume: volume)


def size_of(desired: Desired, name: str) -> int:
    found = desired.get(Key("volume", name))
    assert isinstance(found, Volume)
    return found.size


def pool(cluster_size: int) -> Desired:
    return declare(Desired(), Volume("disk", size=GIB), Pool("p", base="disk", cluster_size=cluster_size))


@pytest.mark.parametrize(
    ("cluster_size", "asked", "made"),
    [
        (64 * KIB, 1600 * KIB, 2 * MIB),
        (64 * KIB, 512 * KIB, MIB),
        (MIB, 1600 * KIB, 2 * MIB),
        (4 * MIB, MIB, 4 * MIB),
        (4 * MIB, 10 * MIB, 12 * MIB),
        (4 * MIB, 8 * MIB, 8 * MIB),
    ],
)
def test_a_volume_in_a_pool_has_whole_clusters_and_what_spdk_counts(cluster_size: int, asked: int, made: int) -> None:
    desired = declare(pool(cluster_size), Volume("l", "lvol", pool="p", size=asked))
    assert size_of(desired, "l") == made
    grown = Volume("l", "lvol", pool="p", size=made + 512)
    assert size_of(declare(desired, update=(grown,)), "l") == made + round_up(512, max(cluster_size, MIB))


@given(st.sampled_from([16, 20, 22]), st.integers(1, 1 << 21))
def test_what_spdk_is_asked_for_is_never_less(cluster_shift: int, sectors: int) -> None:
    """SPDK takes MiB, and gives whole clusters."""
    asked, cluster = sectors * 512, 1 << cluster_shift
    desired = declare(pool(cluster), Volume("l", "lvol", pool="p", size=asked))
    for request in (
        methods.lvol_create("l", "p", size_of(desired, "l"), thin=False),
        methods.lvol_resize("p/l", size_of(desired, "l")),
    ):
        given_ = round_up(request.params["size_in_mib"] * MIB, cluster)
        assert asked <= given_ == size_of(desired, "l")
    assert methods.null_resize("n", asked).params["new_size"] * MIB >= asked


def test_a_null_volume_is_counted_in_mib_as_it_grows() -> None:
    desired = declare(Desired(), Volume("n", "null", size=512 * KIB, volatile=True))
    assert size_of(desired, "n") == MIB
    grown = Volume("n", "null", size=1600 * KIB, volatile=True)
    assert size_of(declare(desired, update=(grown,)), "n") == 2 * MIB


def test_a_file_has_exactly_what_was_asked_for() -> None:
    assert size_of(declare(Desired(), Volume("a", size=1600 * KIB + 512)), "a") == 1600 * KIB + 512


def test_a_specification_applied_again_changes_nothing() -> None:
    text = (
        "volumes: [{name: disk, size: 1Gi}, {name: l, backend: lvol, pool: p, size: 1600K}]\n"
        "pools: [{name: p, base: disk, cluster_size: 64K}]\nsnapshots: [{name: s, of: l, pool: p}]\n"
    )
    spec = specs.parse(text, "spec.yaml")
    desired = next_desired(Desired(), specs.difference(Desired(), spec, prune=False, wipe=False), lambda volume: volume)
    assert (size_of(desired, "l"), size_of(desired, "s")) == (2 * MIB, 2 * MIB)
    assert specs.difference(desired, spec, prune=True, wipe=True).keys == set()


# -- snapshots and clones ---------------------------------------------------------------------------------------------


def test_snapshots_and_clones_have_the_size_of_what_they_are_of() -> None:
    """Also where all of them are declared at once, in any order."""
    clone = Volume("c", "lvol", pool="p", clone_of="s")
    snapshot = Volume("s", "lvol", pool="p", snapshot_of="l")
    desired = declare(pool(MIB), clone, snapshot, Volume("l", "lvol", pool="p", size=3 * MIB))
    assert [size_of(desired, name) for name in "lsc"] == [3 * MIB] * 3
    larger = declare(desired, Volume("d", "lvol", pool="p", clone_of="s", size=5 * MIB))
    assert size_of(larger, "d") == 5 * MIB
    with pytest.raises(ConflictError, match="cannot shrink from 3M to 2M"):
        declare(desired, update=(Volume("c", "lvol", pool="p", clone_of="s", size=2 * MIB),))


@pytest.mark.parametrize(
    ("volume", "reason"),
    [
        (Volume("x", "lvol", pool="p", clone_of="l"), "volume l is no snapshot, and only snapshots have clones"),
        (Volume("x", "lvol", pool="p", snapshot_of="disk"), "volume disk is in no pool"),
        (Volume("x", "lvol", pool="p", clone_of="s", size=MIB), "a clone begins with the size of what it is of, 2M"),
        (Volume("x", "lvol", pool="p", snapshot_of="l", size=4 * MIB), "a snapshot begins with the size"),
    ],
)
def test_what_cannot_be_a_snapshot_or_a_clone(volume: Volume, reason: str) -> None:
    desired = declare(pool(MIB), Volume("l", "lvol", pool="p", size=2 * MIB))
    desired = declare(desired, Volume("s", "lvol", pool="p", snapshot_of="l"))
    with pytest.raises(UsageError, match=f"^volume x: .*{reason}"):
        declare(desired, volume)
