"""Peers and variants on the real parts: every disk is seen, polled queues are polled, files are kept, nothing stays."""

from __future__ import annotations

import json
from pathlib import Path

from nvmuser.bench.measure.progress import Silent
from nvmuser.bench.report import records
from nvmuser.bench.rounds import matrix
from nvmuser.bench.scenarios import compare, tune

TIMING = matrix.Timing(runtime=0.5, ramp=0.0)


async def test_peers_are_measured_with_interrupts_and_polled(tmp_path: Path) -> None:
    cases = [case for case in matrix.short(TIMING) if case.job.name.startswith("randread-4k-qd1-")]
    plan = compare.ComparePlan(cases, ["endpoint", "virtio-blk"], rounds=1, size=16 << 20)
    found = await compare.compare(plan, tmp_path, Silent())

    measured = {(run.job, run.peer) for run in found.runs}
    assert measured == {(case.job.name, peer) for case in cases for peer in plan.peers}
    assert found.skipped == {}
    assert all(run.iops > 0 and run.host_us_per_io for run in found.runs)
    report = json.loads((tmp_path / "fio/round1/virtio-blk/randread-4k-qd1-poll/fio.json").read_text())
    assert report["jobs"][0]["job options"]["hipri"] == "1"
    assert not list(tmp_path.glob("disks-*"))


async def test_two_cpus_have_a_polled_queue_beside_their_own_and_go_on_after_an_interruption(tmp_path: Path) -> None:
    cases = [case for case in matrix.full(TIMING) if case.job.name == "rw-128k-qd8-poll-2cpu"]
    plan = compare.ComparePlan(cases, ["endpoint", "virtio-blk-vq"], rounds=1, size=16 << 20, backing="memory")
    found = await compare.compare(plan, tmp_path, Silent())
    assert [run.peer for run in found.runs] == ["endpoint", "virtio-blk-vq"]

    lines = (tmp_path / records.FILE).read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] == "header" or '"peer": "endpoint"' in line]
    (tmp_path / records.FILE).write_text("".join(kept))
    again = await compare.compare(plan, tmp_path, Silent(), resume=True)
    assert [run.peer for run in again.runs] == ["endpoint", "virtio-blk-vq"]
    assert again.runs[0] != found.runs[0], "ratios are of what was measured together"
    assert again.footer is not None


async def test_every_other_peer_and_engine(tmp_path: Path) -> None:
    cases = [case for case in matrix.full(TIMING) if case.job.name == "randread-4k-qd32-libaio"]
    peers = ["endpoint", "direct", "nvme", "vhost-user-blk-qsd", "vhost-user-blk-spdk"]
    found = await compare.compare(compare.ComparePlan(cases, peers, rounds=1, size=16 << 20), tmp_path, Silent())
    assert {run.peer for run in found.runs} == set(peers) - found.skipped.keys()
    # Of these, SPDK's vhost alone cannot do without hugepages; root gets them lent.
    assert found.skipped.keys() <= {"vhost-user-blk-spdk"}
    assert all("hugepages" in reason for reason in found.skipped.values())
    assert all(run.iops > 0 for run in found.runs)


async def test_variants_are_measured_against_what_is_shipped(tmp_path: Path) -> None:
    plan = tune.TunePlan(tune.choose(["beside-yielding"]), rounds=1, runtime=0.5)
    found = await tune.tune(plan, tmp_path, Silent())
    assert found.peers == ["default", "beside-yielding"]
    assert len(found.runs) == 2 * len(plan.session.cases)
    assert found.skipped == {}
