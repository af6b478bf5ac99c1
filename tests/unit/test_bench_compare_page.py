"""The report of a comparison: page, plots, Markdown and the table on a terminal."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from matplotlib.container import ErrorbarContainer
from rich.console import Console
from test_bench_analysis import HEADER, JOB, comparison, run
from test_bench_report import Links

from nvmuser.bench.measure.stats import Interval
from nvmuser.bench.report import compare_page, plots, records
from nvmuser.bench.report.records import Comparison
from nvmuser.bench.rounds import matrix, peers

VALUES = {"endpoint": [100.0, 50, 80, 20], "nvme": [50.0, 25, 40, 10], "direct": [10.0, 100, 10, 100]}


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
    found.runs = [replace(run, steady=run.peer == "endpoint" or run.round > 1) for run in found.runs]
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
        replace(run, bw_bytes=run.iops * (128 << 10), lat_ns=run.lat_ns | {"p99_9": 7e6}) for run in found.runs
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
