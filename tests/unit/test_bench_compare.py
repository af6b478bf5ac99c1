"""The commands on comparisons: what they refuse, merging results, differences, an interrupted run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_bench_analysis import HEADER, JOB, comparison, run

from nvmuser.bench.report import analysis, records
from nvmuser.bench.rounds import matrix
from nvmuser.bench.scenarios.compare import ComparePlan
from nvmuser.cli.bench_compare import compare, diff, report_command
from nvmuser.errors import UsageError

VALUES = {"endpoint": [100.0, 50, 80, 20], "nvme": [50.0, 25, 40, 10], "direct": [10.0, 100, 10, 100]}


def written(directory: Path, values: Mapping[str, Sequence[float]], header: dict[str, Any] = HEADER) -> Path:
    directory.mkdir()
    with records.Writer(directory / records.FILE) as writer:
        writer.header(header)
        for peer, row in values.items():
            for number, iops in enumerate(row):
                writer.run(run(peer, number, iops))
        writer.footer({"noise": [0.01], "seconds": 1.0})
    return directory


def test_diff_with_too_few_rounds_says_so(tmp_path: Path) -> None:
    old = written(tmp_path / "old", {"endpoint": [100.0, 100, 100]})
    new = written(tmp_path / "new", {"endpoint": [200.0, 200, 200]})
    shown = CliRunner().invoke(diff, [str(old), str(new)], catch_exceptions=False).output
    assert "too few rounds" in shown
    assert "95 %" not in shown


def test_comparison_without_ours_is_refused() -> None:
    with pytest.raises(UsageError, match="needs endpoint"):
        ComparePlan(matrix.short(matrix.Timing()), ["nvme"]).session  # noqa: B018 (looking is refusing)


def test_report_command_merges_and_writes(tmp_path: Path) -> None:
    half = {peer: row[:2] for peer, row in VALUES.items()}
    first, second = written(tmp_path / "a", half), written(tmp_path / "b", half)
    page = tmp_path / "page.html"
    done = CliRunner().invoke(
        report_command, [str(first), str(second), "-o", str(page), "--markdown"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "4 rounds" in done.output
    assert "4 rounds" in page.read_text()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("versions", "commit", "abc"),
        ("environment", "cpu_model", "another CPU"),
        ("environment", "cpus", 4),
        ("environment", "kernel", "6.19"),
        ("guest", "hugepages", True),
        ("settings", "runtime", 1.0),
    ],
)
def test_merge_refuses_what_was_not_made_alike(part: str, name: str, value: object) -> None:
    changed: dict[str, Any] = HEADER.get(part, {})  # type: ignore[assignment]
    other = replace(comparison(VALUES), header=HEADER | {part: changed | {name: value}})
    with pytest.raises(UsageError, match=rf"differ in {part}\.{name} "):
        records.merge([comparison(VALUES), other])


def test_merge_takes_more_rounds_and_another_noise() -> None:
    settings: dict[str, Any] = HEADER["settings"]  # type: ignore[assignment]
    machine: dict[str, Any] = HEADER["environment"]  # type: ignore[assignment]
    other = HEADER | {"settings": settings | {"rounds": 9}, "environment": machine | {"noise_before": 0.3}}
    merged = records.merge([comparison(VALUES), replace(comparison(VALUES), header=other)])
    assert len(merged.runs) == 24
    assert merged.noise == 0.3


def test_diff_command_tells_real_changes(tmp_path: Path) -> None:
    old = written(tmp_path / "old", {"endpoint": [100.0, 101, 99, 100, 100]})
    new = written(tmp_path / "new", {"endpoint": [150.0, 151, 149, 150, 150]}, HEADER | {"accelerator": "kvm"})
    done = CliRunner().invoke(diff, [str(old), str(new), "--json"], catch_exceptions=False)
    document = json.loads(done.output)
    [change] = document["changes"]
    assert change["real"] is True
    assert change["ratio"] == pytest.approx(1.5)
    assert document["not_the_same"] == ["accelerator: tcg then, kvm now"]
    assert "faster" in CliRunner().invoke(diff, [str(old), str(new)], catch_exceptions=False).output


@pytest.mark.parametrize(
    ("metric", "word", "better"),
    [("iops", "faster", True), ("lat_ns.p99", "faster", True), ("host_us_per_io", "costlier", False)],
)
def test_diff_knows_which_way_is_better(tmp_path: Path, metric: str, word: str, better: bool) -> None:
    old, new = comparison({"endpoint": [100.0] * 5}), comparison({"endpoint": [150.0] * 5})
    new.runs = [replace(run, host_us_per_io=300.0) for run in new.runs]  # more I/O, each dearer and sooner done
    for directory, found in (("old", old), ("new", new)):
        (tmp_path / directory).mkdir()
        with records.Writer(tmp_path / directory / records.FILE) as writer:
            writer.header(HEADER)
            for measured in found.runs:
                writer.run(measured)
    arguments = [str(tmp_path / "old"), str(tmp_path / "new"), "--metric", metric]
    document = json.loads(CliRunner().invoke(diff, [*arguments, "--json"], catch_exceptions=False).output)
    assert document["metric"] == metric
    assert [change["better"] for change in document["changes"]] == [better]
    assert word in CliRunner().invoke(diff, arguments, catch_exceptions=False).output


def test_diff_tells_a_machine_that_changed_from_us(tmp_path: Path) -> None:
    """Everything has half the speed, ours a quarter: the machine is half of that, we are the other."""
    names = ("endpoint", "direct", "nvme", "virtio-blk")
    header = HEADER | {"peers": list(names)}
    old = written(tmp_path / "old", {name: [100.0] * 5 for name in names}, header)
    new = written(tmp_path / "new", {name: [25.0 if name == "endpoint" else 50.0] * 5 for name in names}, header)

    def changes(*options: str) -> dict[str, Any]:
        done = CliRunner().invoke(diff, [str(old), str(new), "--json", *options], catch_exceptions=False)
        document: dict[str, Any] = json.loads(done.output)
        return document

    assert changes()["machine_changed"] == {JOB: "slower"}
    assert changes("--metric", "lat_ns.p99")["machine_changed"] == {JOB: "slower"}
    ratios = changes("--metric", "ratio")
    assert ratios["machine_changed"] == {}
    assert {change["peer"]: change["ratio"] for change in ratios["changes"]} == dict.fromkeys(names[1:], 0.5)
    shown = CliRunner().invoke(diff, [str(old), str(new)], catch_exceptions=False).output
    assert "the machine changed" in shown


def test_one_peer_that_moved_is_not_the_machine() -> None:
    old = comparison({"endpoint": [100.0] * 5, "direct": [100.0] * 5, "nvme": [100.0] * 5})
    new = comparison({"endpoint": [50.0] * 5, "direct": [50.0] * 5, "nvme": [50.0] * 5})
    assert analysis.machine_changes(analysis.changes(old, new)) == {}


@pytest.mark.parametrize("metric", ["speed", "lat_ns.p42"])
def test_diff_of_an_unknown_metric(tmp_path: Path, metric: str) -> None:
    old = written(tmp_path / "old", VALUES)
    with pytest.raises(UsageError, match="metric"):
        CliRunner().invoke(diff, [str(old), str(old), "--metric", metric], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--peers", "floppy"], "floppy"), (["--only", "nonsense"], "no job"), (["--rounds", "0"], "round")],
)
def test_compare_refuses_contradictions(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(compare, arguments, catch_exceptions=False)


def test_summary_has_the_documented_keys() -> None:
    found = analysis.summary(comparison(VALUES))
    assert {"ratios", "ratios_ci", "unclear", "noise", "iops", "environment", "versions", "accelerator"} <= found.keys()
    assert found["latency_ratios"] == {JOB: {"nvme": 0.5, "direct": None}}
    assert found["latency_ratios_ci"][JOB]["nvme"] == [0.5, 0.5]
    assert found["lat_ns"]["p50"][JOB]["nvme"] == pytest.approx(1e9 / 32.5, rel=0.1)
    assert found["lat_ns"]["p99"] == found["lat_ns_p99"]
    assert found["lat_ns"].keys() == {"p50", "p99", "p99_9"}
    assert found["bw_bytes"][JOB]["nvme"] == found["iops"][JOB]["nvme"] * 4096


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_what_was_interrupted_can_be_resumed_and_says_so(
    interruption: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: object, **__: object) -> None:
        raise interruption

    monkeypatch.setattr("nvmuser.cli.bench_compare.comparing.compare", interrupted)
    done = CliRunner().invoke(compare, ["--output", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert f"nvmuser bench report {tmp_path / 'out'}" in done.stderr
    assert "--resume" in done.stderr
