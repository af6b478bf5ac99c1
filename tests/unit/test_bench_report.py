"""The page and the table of a result: complete, self-contained, honest about what went wrong."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from nvmuser.bench.measure import fio_output
from nvmuser.bench.report import page, plots, table
from nvmuser.bench.report.result import Cpu, JobResult, Latency, Result
from nvmuser.errors import UsageError

DATA = Path(__file__).parent / "data" / "fio"


def measured(name: str) -> JobResult:
    job = fio_output.job_result(fio_output.load((DATA / f"{name}.json").read_text()), 0)
    logs = [(DATA / f"{name}_{kind}.1.log").read_text() for kind in ("iops", "lat")]
    series = fio_output.series(*logs, 500, job.directions)
    return replace(job, series=series, cpu=Cpu(97.0, 150.0, {"qemu": 101.0, "target": 99.8}, 190.5))


@pytest.fixture
def result() -> Result:
    return Result(
        created="2026-11-22T21:00:00+00:00",
        accelerator="tcg",
        versions={"nvmuser": "0.1.0", "spdk": "26.01", "qemu": "11.1.3", "guest_kernel": "6.12", "fio": "fio-3.39"},
        environment={
            "cpu_model": "A <CPU> & more",
            "cpus": 2,
            "kernel": "6.18",
            "governor": None,
            "hugepages_total": 0,
            "hugepage_bytes": 2 << 20,
            "noise": 0.03,
        },
        guest={"cpus": 1, "memory_bytes": 1 << 30, "disks": ["demo (file, 256 MiB)"]},
        jobs=[measured("randread"), measured("randrw"), measured("verify")],
    )


class Links(HTMLParser):
    """Collects what a browser would load, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            if key in ("src", "href", "data", "srcset", "poster"):
                self.loads.append(value or "")
            if key == "id":
                self.ids.append(value or "")


def test_page_loads_nothing(result: Result) -> None:
    text = page.html(result)
    links = Links()
    links.feed(text)
    assert not {"script", "link", "img", "iframe", "object"} & links.tags
    # Plots refer to their own marks and clip paths, and to nothing else.
    assert links.loads
    assert all(value.startswith("#") and value[1:] in links.ids for value in links.loads)
    assert "://" not in text
    assert not re.search(r"@import|url\((?!#)", text)


def test_page_names_every_job_and_escapes(result: Result) -> None:
    text = page.html(result)
    for job in result.jobs:
        assert job.name in text
        assert plots.si(job.iops) in text
    assert "A &lt;CPU&gt; &amp; more" in text
    assert "1,024 blocks were written with a checksum and read back, 0 wrong" in text
    assert text.count("<svg") == 2


def test_page_leads_with_what_is_wrong(result: Result) -> None:
    broken = replace(result, jobs=[replace(result.jobs[0], verify_errors=3)])
    assert "randread: 3 wrong blocks" in page.html(broken)
    assert "No I/O errors" not in page.html(broken)


def test_busy_machine_is_named(result: Result) -> None:
    assert "Read with care" not in page.html(result)
    busy = replace(result, environment=result.environment | {"noise": 0.4})
    assert "40 % of an idle spin" in page.html(busy)


def test_page_of_a_job_without_numbers(result: Result) -> None:
    nothing = replace(result.jobs[0], total_ios=0, iops=0.0, lat_ns=Latency(*[math.nan] * 7), cpu=Cpu())
    text = page.html(replace(result, jobs=[nothing]))
    assert "nan" not in text.lower()


def test_table_fits_a_terminal_of_80_columns(result: Result) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table.result(result))
    text = capture.get()
    for job in result.jobs:
        assert job.name in text
    assert "…" not in text
    assert "1,024 ✓" in text


@pytest.mark.parametrize(("noise", "warned"), [(None, False), (0.10, False), (0.11, True), (0.35, True)])
def test_table_carries_a_warning_above_10_percent_noise(result: Result, noise: float | None, warned: bool) -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table.result(replace(result, environment=result.environment | {"noise": noise})))
    assert ("This machine was busy with something else" in capture.get()) is warned


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (999.0, "999"), (999.6, "1k"), (12_345.0, "12.3k"), (1e6, "1M"), (2.5e9, "2.5G")],
)
def test_si(value: float, text: str) -> None:
    assert plots.si(value) == text


@pytest.mark.parametrize(("value", "text"), [(812.0, "812 ns"), (183_296.0, "183 µs"), (2.5e9, "2.5 s")])
def test_duration(value: float, text: str) -> None:
    assert plots.duration(value) == text


def test_result_survives_its_file(tmp_path: Path, result: Result) -> None:
    path = tmp_path / "result.json"
    result.write(path)
    assert Result.read(path) == result
    path.write_text("{}")
    with pytest.raises(UsageError, match="not a result"):
        Result.read(path)
