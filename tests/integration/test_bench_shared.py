"""`bench shared` in a cluster that is another's: its document, and that nothing is left behind."""

from __future__ import annotations

import pytest
from ceph_world import cluster_of

from nvmuser.bench.measure.ceph_cluster import POOL, CephCluster
from nvmuser.bench.measure.progress import Silent
from nvmuser.bench.scenarios.shared import SharedPlan, measure
from nvmuser.bench.scenarios.shared_volumes import Ceph


@pytest.mark.matrix
async def test_the_pieces_that_need_no_guest(ceph: CephCluster) -> None:
    before = ceph.run("rbd", "ls", POOL)
    plan = SharedPlan(("rbd_ratio", "refused"), rounds=1, seconds=1.0, ceph=Ceph(cluster_of(ceph), POOL))
    outcome = await measure(plan, Silent())
    facts = outcome.to_json(plan)
    assert outcome.wrong is None
    assert set(facts["rbd_ratio"]) == set(facts["rbd_iops"]) == {"randread", "randwrite"}
    assert all(ratio > 0 for ratio in facts["rbd_ratio"].values())
    assert facts["refused_s"] == max(facts["refused"].values()) > 0
    assert ceph.run("rbd", "ls", POOL) == before
