"""What can be declared, what cannot, and the one line that says why."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from nvmuser.errors import ConflictError, NotFoundError, NvmuserError, UsageError
from nvmuser.model.change import Change, attach, detach, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Limits, Namespace, Pool, Volume, object_from_json

NULL = {"backend": "null", "volatile": True, "size": 1 << 20}


def declare(desired: Desired, *objects: Any, **change: Any) -> Desired:
    return next_desired(desired, Change(create=objects, **change), lambda volume: volume)


@pytest.mark.parametrize("name", ["", "a b", "A", "-a", "x" * 64, "a/b", "ä", "..", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="volume name"):
        Volume(name, **NULL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"size": 0}, "needs a size above 0"),
        ({"size": 1000}, "not a multiple of its block size"),
        ({"size": 1 << 20, "block_size": 520}, "choose 512 or 4096"),
        ({"size": 1 << 20, "backend": "uring"}, "choose from file"),
        ({"size": 1 << 20, "backend": "malloc"}, "dies with the target; pass --volatile"),
        ({"backend": "lvol", "size": 1 << 20}, "needs a pool"),
        ({"backend": "raid1", "members": ("a",)}, "two members"),
        ({"backend": "remote", "remote": "r"}, "number of a namespace"),
        ({"backend": "delay"}, "needs a base volume"),
    ],
)
def test_bad_volumes(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Volume("v", **fields)


def test_limits_are_multiples_of_a_thousand() -> None:
    with pytest.raises(UsageError, match="take 2000 or another multiple of 1000"):
        Limits(iops=1500)
    assert Limits(iops=2000).iops == 2000


def test_unknown_and_mistyped_fields() -> None:
    with pytest.raises(UsageError, match="unknown field 'sise'"):
        object_from_json({"kind": "volume", "name": "a", "sise": 1})
    with pytest.raises(UsageError, match=r"volume.size: expected int, got '1G'"):
        object_from_json({"kind": "volume", "name": "a", "size": "1G"})
    with pytest.raises(UsageError, match=re.escape("controller.namespaces[0]: missing volume")):
        object_from_json({"kind": "controller", "name": "a", "namespaces": [{}]})
    with pytest.raises(UsageError, match="choose from volume, pool, remote, cluster, controller"):
        object_from_json({"kind": "disk", "name": "a"})


def test_identities_are_made_once() -> None:
    desired = declare(Desired(), Volume("a", **NULL), Controller("c", (Namespace("a"),)))  # type: ignore[arg-type]
    volume, controller = desired.get(Key("volume", "a")), desired.get(Key("controller", "c"))
    assert isinstance(volume, Volume)
    assert isinstance(controller, Controller)
    assert re.fullmatch(r"[0-9a-f-]{36}", volume.uuid)
    assert re.fullmatch(r"[0-9A-F]{32}", volume.nguid)
    assert re.fullmatch(r"[0-9A-F]{16}", volume.eui64)
    assert (controller.nqn, controller.cntlid, len(controller.serial)) == ("nqn.2026-11.org.nvmuser:c", 1, 20)
    # an update that leaves them out keeps them; one that names others is refused
    again = declare(desired, update=(Controller("c"), Volume("a", limits=Limits(iops=1000), **NULL)))  # type: ignore[arg-type]
    after = again.get(Key("volume", "a"))
    assert isinstance(after, Volume)
    assert (after.uuid, after.nguid, after.eui64) == (volume.uuid, volume.nguid, volume.eui64)
    with pytest.raises(ConflictError, match=r"its serial is .* for ever, not OTHER"):
        declare(desired, update=(replace(controller, serial="OTHER"),))


def test_controller_ids_are_distinct_and_reused() -> None:
    desired = declare(Desired(), *(Controller(f"c{n}") for n in range(3)))
    assert [one.cntlid for one in desired.controllers()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("objects", "kind", "reason"),
    [
        ((Controller("c", (Namespace("a"),)),), NotFoundError, "controller c: there is no volume a"),
        (
            (Volume("a", **NULL), Controller("c", (Namespace("a"),)), Controller("d", (Namespace("a"),))),  # type: ignore[arg-type]
            ConflictError,
            "volume a: in use by controller c, so not free for controller d",
        ),
        (
            (Volume("a", "delay", base="b", volatile=True), Volume("b", "delay", base="a", volatile=True)),
            UsageError,
            "lies on itself",
        ),
        (
            (
                Volume("a", **NULL),
                Pool("p", base="a", cluster_size=1 << 16),
                Volume("l", "lvol", size=1 << 20, pool="p"),
            ),  # type: ignore[arg-type]
            UsageError,
            "volume l: lies on volume a, whose data dies",
        ),
        ((Controller("c", nqn="nqn.2026-11.x:y"), Controller("d", nqn="nqn.2026-11.x:y")), ConflictError, "NQN"),
        ((Volume("a", **NULL), Volume("a", **NULL)), ConflictError, "volume a: exists already"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_go_together(objects: tuple[Any, ...], kind: type[NvmuserError], reason: str) -> None:
    with pytest.raises(kind, match=reason):
        declare(Desired(), *objects)


def test_what_cannot_change() -> None:
    one = Volume("a", size=1 << 20)
    desired = declare(Desired(), one)
    with pytest.raises(ConflictError, match="cannot shrink from 1M to 512"):
        declare(desired, update=(replace(one, size=512),))
    with pytest.raises(ConflictError, match="its block_size cannot change"):
        declare(desired, update=(replace(one, block_size=4096),))


def test_attach_and_detach() -> None:
    one = attach(Controller("c", (Namespace("a", 1), Namespace("b", 3))), "c")
    assert [(ns.nsid, ns.volume) for ns in one.namespaces] == [(1, "a"), (2, "c"), (3, "b")]
    with pytest.raises(ConflictError, match="attached to controller c already"):
        attach(one, "a")
    with pytest.raises(UsageError, match="each once"):
        attach(one, "d", 3)
    with pytest.raises(ConflictError, match="not attached"):
        detach(one, "d")
    assert [ns.volume for ns in detach(one, "c").namespaces] == ["a", "b"]


def test_a_change_travels_as_json() -> None:
    change = Change((Volume("a", **NULL),), (Controller("c", (Namespace("a"),)),), (Key("pool", "p"),), True)  # type: ignore[arg-type]
    assert Change.from_json(change.to_json()) == change
    with pytest.raises(UsageError, match="unknown field"):
        Change.from_json({"creat": []})


def test_a_key_is_text_at_the_edges_alone() -> None:
    key = Volume("a.b-c", **NULL).key  # type: ignore[arg-type]
    assert (f"{key}", key.words, Key.parse(f"{key}")) == ("volume/a.b-c", "volume a.b-c", key)
    assert Change.from_json({"delete": ["pool/p"]}).to_json()["delete"] == ["pool/p"]
    with pytest.raises(UsageError, match="expected kind/name, such as volume/a"):
        Change.from_json({"delete": ["volume a"]})
