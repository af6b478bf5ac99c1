"""The text of the metrics, as Prometheus' own parser reads it."""

from __future__ import annotations

from pathlib import Path

from api_world import api_world
from prometheus_client.parser import text_string_to_metric_families

from nvmuser.api.host import Sample
from nvmuser.api.metrics import Seen, TargetSeen, exposition
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
    guest = {"controller": "c", "recoveries": 3, "messages": 7, "last_stall": None, "longest_stall": 0.5}
    drift = {"in_sync": ["controller/c"], "drifted": ["volume/a"], "foreign": ["bdev x"],
             "remotes": [{"remote": "r", "path": 'a"\\b\n', "connected": True}]}  # fmt: skip
    sample = Sample(1.0, {}, drift)
    found = parsed(exposition(Seen(DESIRED, {"guests": [guest], "errors": ["x"]}, sample, {"spdk": target}, {}, 9, 2)))
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
