"""What a change takes away from controllers, and what is not taken away from a guest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from nvmuser.errors import ConflictError, TargetError
from nvmuser.model.change import Change, losses, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.supervisor import occupancy


@pytest.fixture
def desired() -> Desired:
    """Controller c with volumes a and b, and d without any."""
    volumes = tuple(Volume(name=name, size=1 << 20, backend="null", volatile=True) for name in "ab")
    filled = Controller("c", (Namespace("a"), Namespace("b")), volatile=True)
    return next_desired(Desired(), Change(create=(*volumes, filled, Controller("d"))), lambda volume: volume)


def test_what_is_lost(desired: Desired) -> None:
    c = desired.controller("c")
    first, second = c.namespaces
    assert losses(desired, Change(delete=(Key("controller", "c"), Key("volume", "x")))) == {"c": "the controller"}
    assert losses(desired, Change(update=(replace(c, namespaces=(first,)),))) == {"c": "volume b"}
    assert losses(desired, Change(update=(replace(c, namespaces=()),))) == {"c": "volumes a, b"}
    swapped = (replace(first, nsid=second.nsid), replace(second, nsid=first.nsid))
    assert losses(desired, Change(update=(replace(c, namespaces=swapped),))) == {"c": "volumes a, b"}


def test_what_is_no_loss(desired: Desired) -> None:
    c, d = desired.controller("c"), desired.controller("d")
    more = replace(d, namespaces=(Namespace("a"),))
    assert losses(desired, Change(create=(Controller("new"),), update=(replace(c, mode="0666"), more))) == {}


async def test_a_guest_that_stays_keeps_what_it_has(desired: Desired, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occupancy, "_LEAVING", 0.1)

    async def look(controllers: Sequence[Controller]) -> dict[str, str]:
        return {"c": "process 42"}

    c, d = desired.controller("c"), desired.controller("d")
    words = r"controller c serves a guest \(process 42\), which would lose volume b: .* --force"
    with pytest.raises(ConflictError, match=words):
        await occupancy.check_losses({d: "the controller", c: "volume b"}, look)
    await occupancy.check_losses({d: "the controller"}, look)


async def test_a_guest_that_is_about_to_leave_is_none(desired: Desired) -> None:
    asked = []

    async def look(controllers: Sequence[Controller]) -> dict[str, str]:
        asked.append([one.name for one in controllers])
        return {"c": "process 42"} if len(asked) < 3 else {}

    await occupancy.check_losses({desired.controller("c"): "the controller"}, look)
    assert asked == [["c"]] * 3


async def test_an_endpoint_that_does_not_answer_is_no_proof(desired: Desired) -> None:
    nobody = {"sessions": [], "rss_kib": 0, "controllers": 0}
    with pytest.raises(TargetError, match="the endpoint does not answer"):
        await occupancy.connected([desired.controller("c")], nobody, None)
    sessions = [{"controller": "c", "pid": 7}, {"controller": "x", "pid": 8}]
    answer = {"sessions": sessions, "rss_kib": 1, "controllers": 2}
    assert await occupancy.connected([desired.controller("c")], answer, None) == {"c": "process 7"}
