"""The page of a comparison, the peers' arguments, the matrix of jobs, and the command line's refusals."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.container import ErrorbarContainer
from rich.console import Console
from test_bench_analysis import HEADER, JOB, comparison, run
from test_bench_report import Links

from nvmuser.bench.measure.stats import Interval
from nvmuser.bench.report import analysis, compare_page, plots, records
from nvmuser.bench.report.records import Comparison
from nvmuser.bench.rounds import matrix, peer_servers, peers
from nvmuser.bench.scenarios.compare import Plan
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


def test_page_is_self_contained_and_says_what_is_noisy() -> None:
    page = compare_page.html(comparison(VALUES))
    links = Links()
    links.feed(page)
    assert not {"script", "link", "img", "iframe"} & links.tags
    assert all(value.startswith("#") and value[1:] in links.ids for value in links.loads)
    assert "://" not in page
    assert "2.00" in page
    assert "noisy" in page
    assert JOB in page


def test_page_without_enough_rounds_draws_no_ratios() -> None:
    page = compare_page.html(comparison({"endpoint": [100.0], "nvme": [50.0]}))
    assert page.count("<svg") == 1
    assert "too few" in page


def test_plots_of_many_jobs_are_cut_into_pages() -> None:
    """The full set, as one figure, would be metres high."""
    jobs = [case.job.name for case in matrix.full(matrix.Timing())]
    found = Comparison(
        HEADER, [replace(run(peer, n, 10), job=job) for job in jobs for peer in VALUES for n in range(3)]
    )
    heights = [float(height) for height in re.findall(r'<svg[^>]* height="([\d.]+)pt"', compare_page.html(found))]
    assert len(heights) == 2 * math.ceil(len(jobs) / 12)
    assert max(heights) < 10 * 72  # A4 without its margins is 10.6 inches high


def test_short_set_is_drawn_on_one_page() -> None:
    jobs = [case.job.name for case in matrix.short(matrix.Timing())]
    header = HEADER | {"peers": list(peers.SHORT)}
    runs = [replace(run(peer, n, 10), job=job) for job in jobs for peer in peers.SHORT for n in range(3)]
    page = compare_page.html(Comparison(header, runs, footer={"noise": [0], "seconds": 1.0}))
    heights = [float(height) for height in re.findall(r'<svg[^>]* height="([\d.]+)pt"', page)]
    assert len(heights) == 2
    assert sum(heights) < 9 * 72


INTERVALS = {job: {peer: Interval(1.5, 0.4, 2.5, 5) for peer in peers.PEERS[1:]} for job in ("one", "two")}


def test_each_peer_has_a_colour_and_a_marker_of_its_own_and_error_bars() -> None:
    axes = plots.intervals(INTERVALS, peers.PEERS, "title", ratio=True).axes[0]
    bars = [item for item in axes.containers if isinstance(item, ErrorbarContainer)]
    assert [bar.get_label() for bar in bars] == list(peers.PEERS[1:])
    points = [bar.lines[0] for bar in bars]
    assert len({point.get_color() for point in points}) == len(bars)
    assert len({point.get_marker() for point in points}) == len(bars)
    for bar in bars:
        for segment in bar.lines[2][0].get_segments():
            assert [x for x, _ in segment] == pytest.approx([0.4, 2.5])


@pytest.mark.parametrize("length", [5, 19, 21, 31])
def test_the_legend_is_not_wider_than_the_figure(length: int) -> None:
    names = [f"{number}".ljust(length, "n") for number in range(5)]
    figure = plots.intervals({"job": dict.fromkeys(names, Interval(1, 0.9, 1.1, 5))}, names, "title", ratio=True)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_ratios_stand_on_a_logarithmic_axis_around_one() -> None:
    axes = plots.intervals(INTERVALS, peers.PEERS, "title", ratio=True).axes[0]
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == [0.5, 1, 2]
    assert axes.get_xlim()[0] < 0.4 < 2.5 < axes.get_xlim()[1]


def test_page_of_one_that_was_interrupted_says_so() -> None:
    unfinished = replace(comparison(VALUES), footer=None)
    assert "did not come to its end" in compare_page.html(unfinished)
    assert "did not come to its end" in compare_page.markdown(unfinished)


def test_busy_machine_is_named() -> None:
    busy = replace(comparison(VALUES), footer={"noise": [0.5], "seconds": 1.0})
    assert "busy with something else" in compare_page.markdown(busy)


def test_markdown_is_a_table_of_peers() -> None:
    lines = compare_page.markdown(comparison(VALUES)).splitlines()
    assert lines[2] == "| job | endpoint | direct | nvme |"
    assert "(\N{MULTIPLICATION SIGN} 2.00)" in lines[4]
    assert "(noisy: " in lines[4]


def test_what_may_as_well_be_one_is_marked_and_not_bold() -> None:
    even = comparison({"endpoint": [100.0, 99, 101], "nvme": [99.0, 100, 100], "direct": [50.0, 50, 50]})
    assert "(\N{MULTIPLICATION SIGN} 1.01 \N{ALMOST EQUAL TO})" in compare_page.markdown(even)
    page = compare_page.html(even)
    assert "<td>1.01 \N{ALMOST EQUAL TO}</td>" in page
    assert '<td class="main">2.00</td>' in page
    console = Console(width=120, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(compare_page.table(even))
    assert "1.01 \N{ALMOST EQUAL TO}" in capture.get()
    assert re.search(r"\x1b\[1m *2\.00", capture.get())
    assert not re.search(r"\x1b\[1m *1\.01", capture.get())


def reports(found: records.Comparison) -> tuple[str, str, str]:
    """As a table in a terminal, wide enough for every sentence, as Markdown, as a page."""
    console = Console(width=300)
    with console.capture() as capture:
        console.print(compare_page.table(found))
    return capture.get(), compare_page.markdown(found), compare_page.html(found)


def test_reports_say_whose_runs_were_unsteady() -> None:
    found = comparison({"endpoint": [100.0] * 4, "nvme": [50.0] * 4})
    found.runs = [replace(one, steady=one.peer == "endpoint" or one.round > 1) for one in found.runs]
    for text in reports(found):
        assert "6 of 8 runs; not: nvme 2 of 4" in text
        assert "50\N{DAGGER}" in text
        assert "100\N{DAGGER}" not in text


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_every_report_says_what_cpu_per_io_contains(accelerator: str) -> None:
    found = replace(comparison(VALUES), header=HEADER | {"accelerator": accelerator})
    for text in reports(found):
        assert "always spins" in text
        assert "1 / IOPS" in text
        assert ("own CPU" in text or "guest&#39;s own" in text) == (accelerator == "tcg")


def test_every_report_has_latency_and_bandwidth() -> None:
    found = comparison({"endpoint": [1000.0] * 3, "nvme": [500.0] * 3})
    found.runs = [
        replace(one, bw_bytes=one.iops * (128 << 10), lat_ns=one.lat_ns | {"p99_9": 7e6}) for one in found.runs
    ]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(compare_page.table(found))
    for text in (capture.get(), compare_page.markdown(found), compare_page.html(found)):
        plain = text.replace(" ", "")
        assert all(number in plain for number in ("1ms", "4ms", "7ms", "62.5"))
    assert "| 1 ms / 2 ms / 7 ms | 2 ms / 4 ms (0.50) / 7 ms |" in compare_page.markdown(found)
    assert "MiB/s" in compare_page.markdown(found)
    assert "MiB/s" not in compare_page.markdown(comparison(VALUES))  # of 4 KiB, IOPS say it


def test_terminal_table_has_every_peer() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(compare_page.table(comparison(VALUES)))
    assert all(peer in capture.get() for peer in VALUES)


@pytest.mark.parametrize(("rounds", "name"), [(3, "75 %"), (6, "95 %")])
def test_headings_say_what_the_intervals_hold(rounds: int, name: str) -> None:
    found = comparison({"endpoint": [100.0] * rounds, "nvme": [50.0] * rounds})
    console = Console(width=120)
    with console.capture() as capture:
        console.print(compare_page.table(found))
    for text in (capture.get(), compare_page.markdown(found), compare_page.html(found)):
        assert name in text
        assert ("95 %" in text) == (rounds >= 6)


def test_diff_with_too_few_rounds_says_so(tmp_path: Path) -> None:
    old = written(tmp_path / "old", {"endpoint": [100.0, 100, 100]})
    new = written(tmp_path / "new", {"endpoint": [200.0, 200, 200]})
    shown = CliRunner().invoke(diff, [str(old), str(new)], catch_exceptions=False).output
    assert "too few rounds" in shown
    assert "95 %" not in shown


def test_short_matrix_is_what_the_question_needs() -> None:
    names = [case.job.name for case in matrix.short(matrix.Timing())]
    assert sorted(names) == sorted(
        f"{rw}-4k-qd{depth}-{mode}" for rw in ("randread", "randwrite") for depth in (1, 32) for mode in ("irq", "poll")
    )


def test_full_matrix_holds_the_short_one_and_has_distinct_names() -> None:
    timing = matrix.Timing()
    full = matrix.full(timing)
    assert len({case.job.name for case in full}) == len(full)
    assert all(case in full for case in matrix.short(timing))


def test_full_matrix_has_every_dimension() -> None:
    cases = matrix.full(matrix.Timing())
    assert len(cases) == 2 * 2 * 6 * 3 * 3
    seen: dict[str, Counter[Any]] = {
        "rw": Counter(case.job.rw for case in cases),
        "bs": Counter(case.job.bs for case in cases),
        "iodepth": Counter(case.job.iodepth for case in cases),
        "cpus": Counter((case.guest_cpus, case.job.numjobs) for case in cases),
        "engine": Counter((case.job.ioengine, case.job.poll) for case in cases),
    }
    assert seen == {
        "rw": dict.fromkeys(("randread", "randwrite", "randrw", "read", "write", "rw"), 36),
        "bs": {"4k": 108, "128k": 108},
        "iodepth": {1: 72, 8: 72, 32: 72},
        "cpus": {(1, 1): 108, (2, 2): 108},
        "engine": {("io_uring", False): 72, ("io_uring", True): 72, ("libaio", False): 72},
    }


def test_every_way_to_give_a_guest_a_disk_is_a_peer() -> None:
    wanted = {"endpoint", "direct", "nvme", "virtio-blk", "vhost-user-blk-spdk", "vhost-user-blk-qsd"}
    assert wanted <= set(peers.PEERS)
    assert wanted <= set(peers.SHORT)


def devices(arguments: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(value) for flag, value in itertools.pairwise(arguments) if flag == "-device"]


@pytest.mark.parametrize("peer", ["nvme", "virtio-blk", "virtio-blk-vq"])
def test_peers_of_qemu_get_direct_io_and_io_uring(tmp_path: Path, peer: str) -> None:
    arguments = peers.qemu_arguments(peer, tmp_path / peer, 3)
    node = json.loads(arguments[arguments.index("-blockdev") + 1])
    assert node["file"]["aio"] == "io_uring"
    assert node["file"]["cache"]["direct"] is True
    assert node["file"]["filename"] == str(tmp_path / peer)
    [device] = devices(arguments)
    assert device["drive"] == node["node-name"]


def test_virtqueues_are_mapped_to_as_many_iothreads(tmp_path: Path) -> None:
    arguments = peers.qemu_arguments("virtio-blk-vq", tmp_path / "disk", 3)
    [device] = devices(arguments)
    threads = [entry["iothread"] for entry in device["iothread-vq-mapping"]]
    assert len(threads) == device["num-queues"] == 3
    assert [f"iothread,id={thread}" for thread in threads] == [
        value for flag, value in itertools.pairwise(arguments) if flag == "-object"
    ]


def test_vhost_peers_connect_to_the_backend(tmp_path: Path) -> None:
    arguments = peers.qemu_arguments("vhost-user-blk-qsd", tmp_path / "disk", 3, tmp_path / "s")
    assert f"socket,id=vhost,path={tmp_path / 's'}" in arguments
    daemon = peer_servers.storage_daemon_arguments(tmp_path / "disk", tmp_path / "s", 3)
    export = json.loads(daemon[-1])
    assert export["num-queues"] == devices(arguments)[0]["num-queues"] == 3
    assert export["iothread"] in daemon[1]


def test_comparison_without_ours_is_refused() -> None:
    with pytest.raises(UsageError, match="needs endpoint"):
        Plan(matrix.short(matrix.Timing()), ["nvme"]).session  # noqa: B018 (looking is refusing)


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
    new.runs = [replace(one, host_us_per_io=300.0) for one in new.runs]  # more I/O, each dearer and sooner done
    for directory, found in (("old", old), ("new", new)):
        (tmp_path / directory).mkdir()
        with records.Writer(tmp_path / directory / records.FILE) as writer:
            writer.header(HEADER)
            for one in found.runs:
                writer.run(one)
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
def test_compare_that_cannot_be_meant(arguments: list[str], message: str) -> None:
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
