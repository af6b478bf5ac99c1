"""Backends: what each may declare, and that its two halves are one registry."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from nvmuser.errors import ConflictError, UsageError
from nvmuser.model.backends import BACKENDS
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Pool, Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.backends.base import SpdkBackend

MIB = 1 << 20
GIVEN: dict[str, dict[str, Any]] = {
    "file": {"size": MIB},
    "malloc": {"size": MIB, "volatile": True},
    "null": {"size": MIB, "volatile": True},
    "lvol": {"size": 4 * MIB, "pool": "p"},
    "remote": {"remote": "r", "remote_nsid": 1},
    "rbd": {"cluster": "c", "pool_name": "p"},
    "raid1": {"members": ("a", "b")},
    "concat": {"members": ("a", "b")},
    "crypt": {"base": "a"},
    "delay": {"base": "a"},
    "error": {"base": "a"},
}
FOREIGN: dict[str, Any] = {
    "size": MIB, "path": "/x", "owned": True, "pool": "p", "thin": True, "snapshot_of": "a", "clone_of": "a",
    "inflated": True, "remote": "r", "remote_nsid": 1, "members": ("a", "b"), "base": "a", "latency_us": 5,
    "stale": ("a",), "cluster": "c", "pool_name": "p", "image": "i", "create": True, "shared_ok": True,
    "take_over": "0x1", "key_file": "/k", "key_command": "k", "key_check": "c",
}  # fmt: skip


def declare(*objects: Any, **change: Any) -> Desired:
    return next_desired(change.pop("desired", Desired()), Change(create=objects, **change), lambda volume: volume)


def test_both_halves_know_the_same_backends() -> None:
    assert list(backends.REGISTRY) == list(BACKENDS) == list(GIVEN)


def test_every_field_that_belongs_to_a_backend_is_tried_here() -> None:
    assert set(FOREIGN) == {field for backend in BACKENDS.values() for field in backend.takes}
    assert set(FOREIGN) <= {field.name for field in fields(Volume)}


@pytest.mark.parametrize("name", BACKENDS)
def test_what_a_backend_says_it_can_do_is_what_its_module_does(name: str) -> None:
    volume = Volume("v", name, uuid="u", **GIVEN[name])
    request = backends.grow(volume, Desired())
    assert (request is not None) == BACKENDS[name].grows
    kind = type(backends.REGISTRY[name])
    assert kind.create is not SpdkBackend.create
    assert kind.__module__.startswith("nvmuser.reconcile.backends.")


@pytest.mark.parametrize("name", BACKENDS)
def test_fields_of_another_backend_are_refused_by_name(name: str) -> None:
    for field, value in FOREIGN.items():
        if field not in BACKENDS[name].takes:
            words = rf"{field}( \(--[a-z-]+\))?"
            with pytest.raises(UsageError, match=rf"^volume v: {words} is for .*; this is an? {name} volume: leave it"):
                declare(Volume("v", name, **(GIVEN[name] | {field: value})))


def test_a_volume_in_a_pool_takes_no_remote_too() -> None:
    """Both would be in use, and one for nothing."""
    with pytest.raises(UsageError, match="volume a: pool is for lvol; this is a file volume: leave it out"):
        declare(Volume("a", size=1 << 30, pool="p", remote="r"))


def test_what_is_no_clone_is_not_inflated() -> None:
    with pytest.raises(UsageError, match="volume s: it is no clone"):
        declare(Volume("s", "lvol", pool="p", size=4 * MIB, inflated=True))


def test_what_cannot_grow_says_so_before_anything_is_done() -> None:
    made = declare(
        Volume("m", "malloc", size=MIB, volatile=True), Volume("a", size=MIB), Volume("e", "error", base="a")
    )
    for name, size in (("m", 2 * MIB), ("e", MIB)):
        before = made.get(Key("volume", name))
        assert isinstance(before, Volume)
        data = before.to_json() | {"size": size}
        with pytest.raises(ConflictError, match=f"volume {name}: an? .* volume cannot grow"):
            declare(desired=made, update=(Volume.from_json(data),))


def test_what_a_store_holds_since_long_ago_can_be_read() -> None:
    old = Volume.from_json({"kind": "volume", "name": "a", "size": MIB, "pool": "p"})
    assert old.depends_on == (Key("pool", "p"),)
    assert Pool("p", base="a").cluster_size == 4 * MIB


def test_the_documented_table_is_the_one_of_the_model() -> None:
    text = (Path(__file__).parents[2] / "docs" / "control-plane.md").read_text()
    rows = re.search(r"\| backend \|.*?\n\n", text, re.DOTALL)
    assert rows
    documented = set(re.findall(r"`([a-z0-9]+)`", " ".join(row.split("|")[1] for row in rows[0].splitlines() if row)))
    assert documented == set(BACKENDS)
