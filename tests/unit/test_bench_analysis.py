"""Conclusions of a comparison: ratios within rounds, none where it is too noisy, changes that are real."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nvmuser.bench.report import analysis, records
from nvmuser.bench.report.records import Comparison, Run
from nvmuser.errors import UsageError

HEADER = {
    "created": "2026-11-22T21:00:00+00:00",
    "accelerator": "tcg",
    "versions": {"spdk": "26.01", "qemu": "11.1.3", "guest_kernel": "6.12", "fio": "fio-3.39", "nvmuser": "0.1.0"},
    "environment": {
        "cpu_model": "A CPU",
        "cpus": 2,
        "kernel": "6.18",
        "governor": None,
        "hugepages_total": 0,
        "hugepage_bytes": 2 << 20,
        "noise_before": 0.02,
    },
    "settings": {"rounds": 4, "runtime": 3.0, "ramp": 1.0, "backing": "file", "size_bytes": 1 << 28},
    "peers": ["endpoint", "direct", "nvme"],
    "jobs": ["randread-4k-qd1-irq"],
}
JOB = "randread-4k-qd1-irq"


def run(peer: str, number: int, iops: float) -> Run:
    lat: dict[str, float | None] = {"mean": 1e9 / iops, "p50": 1e9 / iops, "p99": 2e9 / iops, "p99_9": None}
    return Run(number, JOB, peer, iops, iops * 4096, lat, 50.0, 200.0, 99.0, {"qemu": 99.0}, True, 0.01, 0.05, 1)


def comparison(values: Mapping[str, Sequence[float]]) -> Comparison:
    runs = [run(peer, number, iops) for peer, row in values.items() for number, iops in enumerate(row)]
    return Comparison(HEADER, runs, footer={"noise": [0.04], "seconds": 60.0})


def test_ratios_are_within_rounds() -> None:
    found = analysis.summary(comparison({"endpoint": [100, 50, 80, 20], "nvme": [50, 25, 40, 10]}))
    assert found["ratios"] == {JOB: {"nvme": 2.0}}
    assert found["ratios_ci"] == {JOB: {"nvme": [2.0, 2.0]}}
    assert found["noise"] == 0.04
    assert found["unclear"] == {JOB: {}}
    json.dumps(found, allow_nan=False)


def test_too_noisy_is_said_instead_of_a_number() -> None:
    found = analysis.summary(comparison({"endpoint": [100, 10, 100, 10], "nvme": [10, 10, 100, 100]}))
    assert found["ratios"][JOB]["nvme"] is None
    assert "too noisy" in found["unclear"][JOB]["nvme"]


def test_an_interval_as_wide_as_one_and_a_half_is_too_noisy() -> None:
    found = analysis.summary(comparison({"endpoint": [100, 100, 160], "nvme": [100, 100, 100]}))
    assert found["ratios"][JOB]["nvme"] is None


@pytest.mark.parametrize(
    ("ours", "theirs", "given"), [([0, 1], [1], True), ([0, 1], [1, 2], False), ([], [0, 1, 2], True)]
)
def test_where_both_sides_were_mostly_unsteady_there_is_no_number(
    ours: list[int], theirs: list[int], given: bool
) -> None:
    found = comparison({"endpoint": [100.0] * 4, "nvme": [50.0] * 4})
    without = {"endpoint": ours, "nvme": theirs}
    found.runs = [replace(run, steady=run.round not in without[run.peer]) for run in found.runs]
    summary = analysis.summary(found)
    assert (summary["ratios"][JOB]["nvme"] is not None) is given
    assert ("steady" in summary["unclear"][JOB].get("nvme", "")) is not given
    assert summary["unsteady_by_peer"] == {JOB: {"endpoint": len(ours), "nvme": len(theirs)}}


def test_too_few_rounds_give_no_number() -> None:
    found = analysis.summary(comparison({"endpoint": [100, 100], "nvme": [50, 50]}))
    assert found["ratios"][JOB]["nvme"] is None
    assert "at least 3" in found["unclear"][JOB]["nvme"]


def test_rounds_that_one_side_lacks_are_left_out() -> None:
    found = analysis.ratios(comparison({"endpoint": [100, 100, 100, 7], "nvme": [50, 50, 50]}))
    assert found[JOB]["nvme"].interval.samples == 3
    assert found[JOB]["nvme"].interval.median == pytest.approx(2)


def test_changes_tell_real_ones_from_noise() -> None:
    old = comparison({"endpoint": [100, 101, 99, 100, 100], "nvme": [50, 60, 40, 55, 50]})
    new = comparison({"endpoint": [120, 121, 119, 120, 120], "nvme": [52, 58, 45, 50, 51]})
    first, second = analysis.changes(old, new)
    assert (first.peer, first.real) == ("endpoint", True)
    assert first.interval.median == pytest.approx(1.2)
    assert (second.peer, second.real) == ("nvme", False)


def test_fewer_than_five_rounds_prove_no_change() -> None:
    old, new = comparison({"endpoint": [100.0] * 5}), comparison({"endpoint": [150.0] * 4})
    assert [change.real for change in analysis.changes(old, new)] == [False]


@pytest.mark.parametrize(("rounds", "level"), [(2, None), (3, 0.75), (5, 0.9375), (6, 0.95)])
def test_the_summary_says_what_its_intervals_hold(rounds: int, level: float | None) -> None:
    assert analysis.summary(comparison({"endpoint": [100.0] * rounds, "nvme": [50.0] * rounds}))["ci_level"] == level


def test_tiny_changes_are_not_real() -> None:
    old, new = comparison({"endpoint": [100.0] * 5}), comparison({"endpoint": [101.0] * 5})
    assert [change.real for change in analysis.changes(old, new)] == [False]


def test_environment_differences_name_what_else_changed() -> None:
    newer = HEADER | {"versions": HEADER["versions"] | {"qemu": "11.2"}, "accelerator": "kvm"}  # type: ignore[operator]
    lines = analysis.environment_differences(HEADER, newer)
    assert lines == ["qemu: 11.1.3 then, 11.2 now", "accelerator: tcg then, kvm now"]


def test_records_survive_writing_and_an_early_end(tmp_path: Path) -> None:
    original = comparison({"endpoint": [100, 50], "nvme": [50, 25]})
    with records.Writer(tmp_path / records.FILE) as writer:
        writer.header(HEADER)
        writer.skipped("vhost-user-blk-spdk", "needs hugepages")
        for item in original.runs:
            writer.run(item)
        unfinished = records.read(tmp_path)
        assert unfinished.footer is None
        assert unfinished.runs == original.runs
        writer.footer({"noise": [0.04], "seconds": 60.0})
    finished = records.read(tmp_path / records.FILE)
    assert finished.footer == original.footer
    assert finished.skipped == {"vhost-user-blk-spdk": "needs hugepages"}
    assert analysis.ratios(finished) == analysis.ratios(original)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"kind": "run", **vars(run("nvme", 0, 1.0)), "colour": "red"}, "an unknown field 'colour'"),
        ({"kind": "run", "round": 0}, "no field 'attempt'"),
        ({"peer": "nvme"}, "'kind'"),
        ({"kind": "skipped", "peer": "nvme"}, "'reason'"),
        (["run"], ""),
        (None, ""),
    ],
)
def test_a_record_of_another_version_is_one_clear_error(tmp_path: Path, line: object, words: str) -> None:
    with records.Writer(tmp_path / records.FILE) as writer:
        writer.header(HEADER)
    with (tmp_path / records.FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(UsageError, match=f"a record that this nvmuser cannot read: .*{words}"):
        records.read(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]\n", '{"schema": "something/1"}\n'])
def test_file_of_something_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"comparison|not a result"):
        records.read(path)
