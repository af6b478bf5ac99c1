"""The text of the metrics, as Prometheus' own parser reads it."""

from __future__ import annotations

from pathlib import Path

from api_world import api_world
from prometheus_client.parser import text_string_to_metric_families

from nvmuser.api.histograms import Latencies
from nvmuser.api.host import Sample
from nvmuser.api.metrics import Seen, TargetSeen, exposition
from nvmuser.hostfs.fences import Fence
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.reconcile.statistics import Counters, Statistics

VOLUME = Volume("a", size=1 << 20)
CONTROLLER = Controller("c", (Namespace("a", 1),))
DESIRED = Desired({one.key: Entry(one) for one in (VOLUME, CONTROLLER)})
DONE = Counters(10**15 + 1, 2**53, 0.1 + 0.2)


def parsed(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_to_the_digit() -> None:
    target = TargetSeen({}, {"a": Statistics("a", DONE, DONE, DONE)}, 0.004)
    stalls = {"bounds": [0.25, 1.0], "counts": [1, 2, 0], "total": 1.5}
    guest = {"controller": "c", "recoveries": 3, "messages": 7, "last_stall": None, "longest_stall": 0.5,
             "stalls": stalls}  # fmt: skip
    fleet = {"name": "f", "host": "h", "followed": True, "revision": 9, "reported": 7}
    drift = {"in_sync": ["controller/c"], "drifted": ["volume/a"], "foreign": ["bdev x"],
             "remotes": [{"remote": "r", "path": 'a"\\b\n', "connected": True}]}  # fmt: skip
    sample = Sample(1.0, {}, drift)
    facts = {"guests": [guest], "errors": ["x"], "fleet": fleet}
    latencies = {"a": Latencies((0.001,), (5, 1), 0.004)}
    fences = [Fence("ceph", "1.2.3.4:0/1", 1, 0, "another boot")]
    found = parsed(exposition(Seen(DESIRED, facts, sample, {"spdk": target}, {}, 9, 2, latencies, fences)))
    waited = [found["nvmuser_controller_stall_seconds_bucket", "c", bound] for bound in ("0.25", "1.0", "+Inf")]
    assert waited == [1, 3, 3]
    assert found["nvmuser_controller_stall_seconds_sum", "c"] == 1.5
    assert found["nvmuser_volume_latency_seconds_bucket", "a", "0.001"] == 5
    assert found["nvmuser_volume_latency_seconds_count", "a"] == 6
    assert (found["nvmuser_fleet_followed", "f"], found["nvmuser_fleet_revision", "f"]) == (1, 9)
    assert found["nvmuser_fleet_reported", "f"] == 7
    assert found["nvmuser_cluster_clients", "ceph", "ended"] == 1
    assert found["nvmuser_volume_reads_completed_total", "a"] == 10**15 + 1
    assert found["nvmuser_volume_write_bytes_total", "a"] == 2**53
    assert found["nvmuser_volume_unmap_time_seconds_total", "a"] == 0.1 + 0.2
    assert found["nvmuser_object_in_sync", "volume", "a"] == 0
    assert found["nvmuser_object_in_sync", "controller", "c"] == 1
    assert found["nvmuser_remote_path_connected", "r", 'a"\\b\n'] == 1
    assert found["nvmuser_controller_connected", "c"] == 1
    assert ("nvmuser_controller_last_stall_seconds", "c") not in found
    assert found["nvmuser_controller_longest_stall_seconds", "c"] == 0.5
    assert (found["nvmuser_problems",], found["nvmuser_changes_total",], found["nvmuser_api_watchers",]) == (1, 9, 2)


async def test_without_a_supervisor_it_says_so(tmp_path: Path) -> None:
    async with api_world(tmp_path) as api:
        answer = await api.client("viewer").get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert parsed(answer.content)["nvmuser_supervisor_up",] == 0
