"""On which target what is, where there are several."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvmuser.errors import ConflictError, NotFoundError, NvmuserError, UsageError
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Namespace, Pool, Remote, TargetSettings, Volume
from nvmuser.model.placement import changed_meanwhile, moving, on, places
from nvmuser.model.remote_path import RemotePath

MIB = 1 << 20


def after(desired: Desired, *, delete: tuple[AnyObject, ...] = (), **change: tuple[AnyObject, ...]) -> Desired:
    keys = tuple(one.key for one in delete)
    return next_desired(desired, Change(delete=keys, wipe=True, **change), lambda volume: volume)  # type: ignore[arg-type]


def world(*controllers: Controller) -> Desired:
    """Target `fast`; volumes a and b; pool p on disk, with l and m in it; remote r with volumes x and y."""
    return after(
        Desired(),
        create=(
            TargetSettings("fast"),
            *(Volume(name, size=64 * MIB, path=f"/{name}") for name in ("a", "b", "disk")),
            Pool("p", base="disk"),
            *(Volume(name, "lvol", size=8 * MIB, pool="p") for name in ("l", "m")),
            Remote("r", nqn="nqn.2026-11.org.example:r", paths=(RemotePath("10.0.0.1"),)),
            *(Volume(name, "remote", remote="r", remote_nsid=n) for n, name in enumerate(("x", "y"), 1)),
            *controllers,
        ),
    )


def shows(name: str, target: str, *volumes: str) -> Controller:
    return Controller(name, tuple(map(Namespace, volumes)), target=target)


def names(desired: Desired, target: str) -> set[str]:
    return {key.name for key in on(desired, target).entries if key.kind not in ("target", "controller")}


def test_what_lies_below_a_controller_is_on_its_target() -> None:
    desired = world(shows("c", "fast", "l"), shows("d", "spdk", "a"))
    assert names(desired, "fast") == {"l", "m", "p", "disk"}
    assert names(desired, "spdk") == {"a", "b", "r", "x", "y"}
    assert on(desired, "fast").targets() == [TargetSettings("fast")]
    assert [one.name for one in on(desired, "fast").controllers()] == ["c"]


def test_a_remote_is_on_each_target_that_has_a_volume_of_it() -> None:
    desired = world(shows("c", "fast", "x"), shows("d", "spdk", "y"))
    assert places(desired)[Key("remote", "r")] == {"fast", "spdk"}
    assert names(desired, "fast") == {"r", "x"}


def test_one_target_has_everything() -> None:
    desired = after(Desired(), create=(Volume("a", size=MIB, path="/a"), shows("c", "spdk", "a")))
    assert on(desired, "spdk") is desired


@pytest.mark.parametrize(
    ("controllers", "error", "words"),
    [
        ([shows("c", "slow", "a")], NotFoundError, "there is no target slow; `nvmuser target create slow`"),
        (
            [shows("c", "fast", "l"), shows("d", "spdk", "m")],
            ConflictError,
            "it needs pool p, and so does controller d",
        ),
    ],
)
def test_what_cannot_be(controllers: list[Controller], error: type[NvmuserError], words: str) -> None:
    with pytest.raises(error, match=words):
        world(*controllers)


def test_a_controller_moves_with_what_lies_below_it() -> None:
    before = world(shows("c", "spdk", "l"), shows("d", "spdk", "m"), shows("e", "spdk", "a"))
    with pytest.raises(ConflictError, match=r"pool p.*controller move c d --to spdk"):
        after(before, update=(replace(before.controller("c"), target="fast"),))
    together = [replace(before.controller(name), target="fast") for name in ("c", "d")]
    moved = moving(before, after(before, update=tuple(together)))
    assert {key.name for key in moved} == {"c", "d", "l", "m", "p", "disk"}
    assert set(moved.values()) == {("spdk", "fast")}


def test_what_a_guest_would_see_change_in_a_move() -> None:
    before = world(shows("c", "spdk", "a"), shows("d", "spdk", "l"), shows("e", "spdk", "b"))
    c, d, e = (replace(before.controller(name), target="fast") for name in "cde")
    volume = before.get(Key("volume", "b"))
    assert isinstance(volume, Volume)
    more = (*d.namespaces, Namespace("m"))
    changed = after(before, update=(c, replace(d, namespaces=more), e, replace(volume, size=128 * MIB)))
    assert changed_meanwhile(before, changed, {c.key, d.key, e.key}) == {"d", "e"}
    assert changed_meanwhile(before, changed, {c.key}) == set()


def test_data_in_the_memory_of_a_target_cannot_leave_it() -> None:
    memory = Volume("m0", "malloc", size=MIB, volatile=True)
    on_it = Controller("c", (Namespace("m0"),), volatile=True)
    before = after(Desired(), create=(TargetSettings("fast"), memory, on_it))
    with pytest.raises(ConflictError, match="m0: its data is in the memory of target spdk"):
        after(before, update=(replace(before.controller("c"), target="fast"),))


def test_the_default_target_stays_and_one_in_use_too() -> None:
    desired = world(shows("c", "fast", "a"))
    with pytest.raises(UsageError, match="the default target is always there"):
        after(desired, delete=(TargetSettings(),))
    with pytest.raises(ConflictError, match="target fast: in use by controller c"):
        after(desired, delete=(TargetSettings("fast"),))


def test_what_is_deleted_is_where_it_was() -> None:
    before = world(shows("c", "fast", "a"))
    gone = after(before, delete=(before.get(Key("controller", "c")), before.get(Key("volume", "a"))))
    assert {places(gone)[Key(*key)] for key in (("controller", "c"), ("volume", "a"))} == {frozenset({"fast"})}
    all_gone = after(before, delete=(before.get(Key("controller", "c")), TargetSettings("fast")))
    assert places(all_gone)[Key("controller", "c")] == {"spdk"}, "to be removed by one that is there"
    assert moving(before, gone) == {}


def test_rules_of_a_target_are_for_what_is_on_it() -> None:
    null = Volume("n", "null", size=MIB, volatile=True)
    quiet = TargetSettings("quiet", profile="eco")
    desired = after(Desired(), create=(quiet, null, Controller("c", (Namespace("n"),), volatile=True)))
    with pytest.raises(ConflictError, match="target quiet: the profile eco has no pollers"):
        after(desired, update=(replace(desired.controller("c"), target="quiet"),))
    one = TargetSettings("one", max_controllers=1)
    with pytest.raises(ConflictError, match="2 controllers, and the target one is to have 1"):
        after(desired, create=(one, Controller("d", target="one"), Controller("e", target="one")))
