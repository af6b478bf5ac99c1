"""What `bench guest --via libvfio,native` makes of its rounds."""

from __future__ import annotations

import json

import pytest

from nvmuser.bench.measure import environment
from nvmuser.bench.measure.fio import Job
from nvmuser.bench.report.result import JobResult, Latency
from nvmuser.bench.scenarios import transports
from nvmuser.bench.scenarios.transports import TransportComparison

JOB = Job("randread", "randread", runtime=1.0)


def result(iops: float) -> JobResult:
    latency = Latency(*[1e9 / iops] * 7)
    return JobResult(
        "randread",
        "randread",
        "4k",
        1,
        "libaio",
        False,
        None,
        1.0,
        int(iops),
        iops,
        iops * 4096,
        latency,
        {},
        0,
        0,
        None,
        50.0,
    )


def comparison(libvfio: list[float], native: list[float]) -> TransportComparison:
    rounds = {"libvfio": [result(iops) for iops in libvfio], "native": [result(iops) for iops in native]}
    return TransportComparison(JOB, 1, rounds, environment.look(), {"qemu": "11.1.3"})


def test_the_ratio_is_that_of_rounds_not_of_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "accelerator", lambda: "tcg")
    document = json.loads(json.dumps(comparison([90, 900, 99, 95], [100, 1000, 110, 100]).to_json()))
    assert document["ratio"] == pytest.approx(0.9)
    low, high = document["ratio_ci"]
    assert low <= document["ratio"] <= high
    assert (document["rounds"], document["unclear"]) == (4, None)
    assert document["iops"] == {"libvfio": 97.0, "native": 105.0}
    assert document["iops_by_round"]["native"] == [100, 1000, 110, 100]


def test_two_rounds_say_little() -> None:
    assert comparison([1, 1], [1, 1]).unclear == "2 rounds, at least 3 are needed"
    assert comparison([1, 1, 1], [1, 1, 1]).unclear is None
