"""Other names for objects: what refers to them follows, SPDK's names stay, and the former name is free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cli_run import Run, ok

from nvmuser.errors import ConflictError, NotFoundError, UsageError
from nvmuser.model import spec as specs
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.named import NamedInSpdk
from nvmuser.model.objects import AnyObject, Controller, Namespace, Pool, Remote, TargetSettings, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.model.rename import renamed
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual

MIB = 1 << 20
NQN = "nqn.2026-11.org.example:far"
OBJECTS: tuple[AnyObject, ...] = (
    Volume("disk", size=256 * MIB, path="/v/disk"),
    Pool("p", base="disk"),
    Volume("l", "lvol", pool="p", size=8 * MIB),
    Volume("s", "lvol", pool="p", snapshot_of="l"),
    Volume("c", "lvol", pool="p", clone_of="s"),
    Volume("a", size=16 * MIB, path="/v/a"),
    Volume("b", size=16 * MIB, path="/v/b"),
    Volume("m", "raid1", members=("a", "b")),
    Volume("slow", "delay", base="m", latency_us=1),
    Remote("r", nqn=NQN, paths=(RemotePath("127.0.0.1"),), psk="/k/psk"),
    Volume("far", "remote", remote="r", remote_nsid=1),
    Volume("bad", "error", base="far"),
    Controller("x", (Namespace("l"), Namespace("c"), Namespace("slow"), Namespace("bad"))),
)
KEYS = [one.key for one in OBJECTS]


def declared(*objects: AnyObject, before: Desired | None = None) -> Desired:
    return next_desired(before or Desired(), Change(create=objects), lambda volume: volume)


@pytest.fixture(scope="module")
def desired() -> Desired:
    return declared(*OBJECTS)


def everything(desired: Desired) -> Iterator[tuple[str, object]]:
    """What SPDK is to have: names of bdevs, lvstores and remotes with the calls that make them; NQNs."""
    for one in desired.wanted():
        if isinstance(one, Volume):
            yield backends.bdev_name(one, desired), backends.create(one, desired, Actual())
        elif isinstance(one, NamedInSpdk):
            yield one.kind, (one.in_spdk, getattr(one, "key_files", None))
        elif isinstance(one, Controller):
            yield one.nqn, (one.serial, one.cntlid)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_what_refers_to_it_follows_and_spdk_has_nothing_to_do(desired: Desired, key: Key) -> None:
    after = renamed(desired, key, "new")
    after.check()
    new = Key(key.kind, "new")
    assert list(after.entries) == sorted({*desired.entries, new} - {key})
    assert sorted(after.users(new)) == sorted(desired.users(key))
    text = json.dumps(specs.export(after))
    assert sorted(everything(after), key=str) == sorted(everything(desired), key=str)
    assert specs.difference(after, specs.parse(text, "x"), prune=True, wipe=True).keys == set()
    assert dict(renamed(after, new, key.name).entries) == dict(desired.entries)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_the_former_name_is_free(desired: Desired, key: Key) -> None:
    after = renamed(desired, key, "new")
    again = replace(next(one for one in OBJECTS if one.key == key))
    if isinstance(again, Volume):
        again = Volume(key.name, size=4 * MIB, path="/v/again")
    elif isinstance(again, Pool):
        after, again = declared(Volume("more", size=64 * MIB, path="/v/more"), before=after), Pool("p", base="more")
    elif isinstance(again, Controller):
        again = Controller("x")
    after = declared(again, before=after)
    names = [backends.bdev_name(one, after) for one in after.volumes()]
    names += [f"{one.kind} {one.in_spdk}" for one in (*after.pools(), *after.remotes())]
    names += [one.nqn for one in after.controllers()]
    assert len(set(names)) == len(names)
    one = after.get(key)
    if isinstance(one, Controller):
        assert one.nqn.endswith(":x.2")
    elif key != Key("volume", key.name) or key.name not in ("l", "s", "c"):
        assert isinstance(one, NamedInSpdk)
        assert one.spdk_name == f"{key.name}.2"
    # A file that declares both makes both, wherever it is applied.
    both = specs.parse(json.dumps(specs.export(after)), "x")
    assert sorted(everything(declared(*both.objects)), key=str) == sorted(everything(after), key=str)


def test_names_in_spdk_are_no_longer_than_it_takes(desired: Desired) -> None:
    long = "a" * 63
    after = renamed(declared(Volume(long, size=MIB, path="/v/l")), Key("volume", long), "new")
    again = declared(Volume(long, size=MIB, path="/v/m"), before=after).get(Key("volume", long))
    assert isinstance(again, Volume)
    assert again.spdk_name == "a" * 61 + ".2"


@pytest.mark.parametrize(
    ("key", "name", "error", "text"),
    [
        (Key("volume", "a"), "b", ConflictError, "volume b: exists already; choose another name"),
        (Key("volume", "a"), "No", UsageError, "volume name 'No'"),
        (Key("pool", "p"), "", UsageError, "pool name ''"),
        (Key("volume", "none"), "new", NotFoundError, "volume none: no such volume"),
        (Key("target", "spdk"), "new", UsageError, "the target has no name"),
    ],
)
def test_what_cannot_be(desired: Desired, key: Key, name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text.replace("(", r"\(")):
        renamed(declared(TargetSettings(), before=desired), key, name)


def test_a_name_whose_deletion_is_not_finished_is_in_use(desired: Desired) -> None:
    deleting = next_desired(desired, Change(delete=(Key("controller", "x"),)), lambda volume: volume)
    with pytest.raises(NotFoundError):
        renamed(deleting, Key("controller", "x"), "y")
    other = declared(Controller("y"), before=deleting)
    with pytest.raises(ConflictError, match="its deletion is not finished yet"):
        renamed(other, Key("controller", "y"), "x")


def test_a_name_that_spdk_knows_cannot_be_declared_twice(desired: Desired) -> None:
    after = renamed(desired, Key("volume", "a"), "new")
    with pytest.raises(ConflictError, match="its spdk_name, a, is volume new's already"):
        declared(Volume("other", size=MIB, path="/v/o", spdk_name="a"), before=after)


def test_rename_on_the_command_line(run: Run, tmp_path: Path) -> None:
    ok(run("volume", "create", "a", "--size", "4M"))
    ok(run("controller", "create", "x", "--attach", "a"))
    assert ok(run("volume", "rename", "a", "new")) == "volume a is called new now\n"
    ok(run("controller", "rename", "x", "y"))
    shown = json.loads(ok(run("controller", "show", "y", "--json")))
    assert (shown["namespaces"][0]["volume"], shown["nqn"]) == ("new", "nqn.2026-11.org.nvmuser:x")
    assert "spdk_name    a" in ok(run("volume", "show", "new"))
    ok(run("volume", "create", "a", "--size", "4M"))
    assert sorted(path.name for path in (tmp_path / "st/volumes").iterdir()) == ["a", "a.2"]
    text = ok(run("export"))
    assert "path" not in text
    (tmp_path / "spec.yaml").write_text(text)
    assert ok(run("diff", "-f", str(tmp_path / "spec.yaml"))) == ""
    assert run("volume", "rename", "new", "a")[0] == 1
    ok(run("volume", "rename", "new", "new"))
    ok(run("volume", "delete", "a", "--yes"))
    assert sorted(path.name for path in (tmp_path / "st/volumes").iterdir()) == ["a"]
    assert json.loads(ok(run("volume", "rename", "new", "a", "--json")))["name"] == "a"
    assert "spdk_name" not in ok(run("volume", "show", "a"))
