"""Reports in a real browser: whole at the width of a small window, and on A4. Needs ci/debian-packages-tests.txt."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_bench_analysis import HEADER, JOB, run
from test_bench_tune import comparison as tuned

from nvmuser.bench.report import compare_page
from nvmuser.bench.report.records import Comparison
from nvmuser.bench.rounds import peers
from nvmuser.bench.scenarios import tune

CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
]
MEASURE = """<script>
const width = document.documentElement.clientWidth;
const cells = [...document.querySelectorAll("th, td, dd, svg")].map(one => one.getBoundingClientRect().right);
const scrolled = [...document.querySelectorAll(".scroll")].map(one => one.scrollWidth - one.clientWidth);
document.title = JSON.stringify({width, right: Math.max(...cells), scrolled: Math.max(0, ...scrolled)});
</script>"""
WIDTH = 1200
POINTS = 72
A4, MARGIN = 210 / 25.4 * POINTS, 14 / 25.4 * POINTS


def compared() -> str:
    """All peers, with numbers as wide as they get."""
    header = HEADER | {"peers": list(peers.PEERS), "jobs": [JOB]}
    lat: dict[str, float | None] = {"mean": 5e5, "p50": 128e6, "p99": 256e6, "p99_9": 512e6}
    rows = [
        replace(run(peer, number, 123_456.0 * (1 + number / 100)), lat_ns=lat, steady=False, bw_bytes=1e9)
        for peer in peers.PEERS
        for number in range(4)
    ]
    return compare_page.html(Comparison(header, rows, footer={"noise": [0], "seconds": 1.0}))


def variants() -> str:
    return tune.html(tuned({"default": [100.0], "no-adaptive-interrupts": [150.0]}))


@pytest.fixture(params=[compared, variants])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(request.param())
    return path


def browser(tmp_path: Path, *arguments: str) -> str:
    command = [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def test_all_of_a_page_is_seen_in_a_window(page: Path, tmp_path: Path) -> None:
    page.write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    dom = browser(tmp_path, f"--window-size={WIDTH},900", "--dump-dom", page.as_uri())
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title
    found = json.loads(title[1].replace("&quot;", '"'))
    assert found["width"] == WIDTH
    assert found["scrolled"] == 0
    assert found["right"] <= WIDTH


def test_all_of_a_page_is_on_paper(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "page.pdf"
    browser(tmp_path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", page.as_uri())
    words = subprocess.run(["pdftotext", "-bbox", pdf, "-"], check=True, capture_output=True, text=True).stdout
    pages = re.findall(r'<page width="([\d.]+)"', words)
    assert {round(float(width)) for width in pages} == {round(A4)}
    right = [float(edge) for edge in re.findall(r'xMax="([\d.]+)"', words)]
    assert max(right) <= A4 - MARGIN + 1
