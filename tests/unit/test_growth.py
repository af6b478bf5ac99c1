"""Cost grows with the work alone: how often all of what is wanted is gone through does not depend on how much it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, ItemsView, Iterator, ValuesView
from pathlib import Path

import pytest

from nvmuser.cli import volume as volume_command
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.reconcile.actual import Actual, ActualNamespace, Bdev, Subsystem
from nvmuser.reconcile.plan import plan
from nvmuser.reconcile.status import status_of, together

FEW, MORE = 8, 64


class Counted(dict[Key, Entry]):
    """Entries that count how often somebody goes through all of them."""

    passes = 0

    def values(self) -> ValuesView[Entry]:  # type: ignore[override]
        self.passes += 1
        return super().values()

    def items(self) -> ItemsView[Key, Entry]:  # type: ignore[override]
        self.passes += 1
        return super().items()

    def __iter__(self) -> Iterator[Key]:
        self.passes += 1
        return super().__iter__()


def world(count: int) -> tuple[Desired, Counted, Actual]:
    """Controllers with a volume each, of which SPDK has all but the last."""
    volumes = [Volume(f"v{number}", path=f"/srv/{number}", size=1 << 20) for number in range(count)]
    controllers = [Controller(f"c{number}", (Namespace(f"v{number}"),)) for number in range(count)]
    change = Change(create=(*volumes, *controllers))
    entries = Counted(next_desired(Desired(), change, lambda volume: volume).entries)
    desired = Desired(entries)
    there = desired.volumes()
    bdevs = {one.in_spdk: Bdev(one.in_spdk, one.uuid, one.size, one.block_size) for one in there[:-1]}
    subsystems = {
        one.nqn: Subsystem(
            one.nqn, one.serial, one.cntlid, one.cntlid, True,
            (ActualNamespace(1, one.namespaces[0].volume, volume.uuid, volume.nguid, volume.eui64),),
            (("VFIOUSER", f"/run/{one.name}"),),
        )
        for one, volume in zip(desired.controllers(), there, strict=True)
    }  # fmt: skip
    entries.passes = 0
    return desired, entries, Actual(True, bdevs, subsystems)


def look(desired: Desired, actual: Actual) -> None:
    directory = functools.cache(lambda name: Path("/run") / name)
    found = status_of(desired, actual, plan(desired, actual, directory))
    everything = together([found], [one.key for one in desired.wanted()])
    assert [key.words for key in everything.missing] == [f"volume v{len(actual.bdevs)}"]


def describe(desired: Desired, actual: Actual) -> None:
    described = [volume_command._described(volume, desired, actual) for volume in desired.volumes()]
    assert all(one["used_by"] == [f"controller c{one['name'][1:]}"] for one in described)


def delete(desired: Desired, actual: Actual) -> None:
    keys = tuple(one.key for one in desired.wanted())
    assert next_desired(desired, Change(delete=keys, wipe=True), lambda volume: volume).wanted() == []


@pytest.mark.parametrize("act", [look, describe, delete])
def test_many_are_not_gone_through_for_each(act: Callable[[Desired, Actual], None]) -> None:
    passes = []
    for count in (FEW, MORE):
        desired, entries, actual = world(count)
        act(desired, actual)
        passes.append(entries.passes)
    assert passes[0] == passes[1]
