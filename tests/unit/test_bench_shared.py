"""The parts of `bench shared`: one that fails does not take what the others have found with it."""

from __future__ import annotations

from typing import Any

import pytest

from nvmuser.bench.measure.progress import Silent
from nvmuser.bench.scenarios import shared
from nvmuser.bench.scenarios.shared import Bench, SharedPlan, measure
from nvmuser.bench.scenarios.shared_volumes import KINDS, Ceph, kinds
from nvmuser.errors import GuestError
from nvmuser.model.objects import Cluster

CEPH = Ceph(Cluster("c"), "rbd")


async def test_a_part_that_fails_is_reported_and_the_next_one_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_bench: Bench) -> dict[str, Any]:
        raise GuestError("no guest")

    async def works(bench: Bench) -> dict[str, Any]:
        return {"found": bench.plan.rounds}

    monkeypatch.setattr(shared, "PIECES", {"kills": fails, "refused": works})
    outcome = await measure(SharedPlan(("kills", "refused"), rounds=7, ceph=CEPH), Silent())
    assert outcome.facts == {"found": 7}
    assert outcome.wrong == "kills: no guest"


def test_every_kind_can_be_named() -> None:
    assert tuple(kinds(CEPH)) == KINDS
