"""`bench scale`: what is measured, with which power costs grow, and what is printed of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nvmuser.bench.measure import stats
from nvmuser.bench.report import scale_document, scale_page
from nvmuser.bench.scenarios import scale
from nvmuser.cli.bench import bench
from nvmuser.errors import UsageError
from nvmuser.paths import StateDir


def test_a_slope_is_the_power_with_which_a_cost_grows() -> None:
    numbers = [10, 100, 1000]
    assert stats.slope(numbers, [3 * number for number in numbers]) == pytest.approx(1)
    assert stats.slope(numbers, [number**2 for number in numbers]) == pytest.approx(2)
    assert stats.slope(numbers, [5, 5, 5]) == pytest.approx(0)
    for wrong in ([10], [1]), ([10, 10], [1, 2]), ([10, 20], [0, 1]):
        with pytest.raises(ValueError, match="slope"):
            stats.slope(*wrong)


def test_a_part_is_measured_at_its_own_numbers_or_at_those_asked_for() -> None:
    assert set(scale.plan((), ())) == set(scale.PARTS)
    assert scale.plan(("control",), ()) == {"control": (100, 500, 2000, 5000)}
    assert scale.plan(("control",), (30, 10, 30)) == {"control": (10, 30)}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--counts", "0"], "numbers with commas"), (["--counts", "x"], "numbers with commas"),
     (["--only", "control", "--counts", "70000"], "65519 at most")],
)  # fmt: skip
def test_other_numbers_are_refused(arguments: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        CliRunner().invoke(
            bench, ["scale", "--output", str(tmp_path), *arguments], obj=StateDir(tmp_path), catch_exceptions=False
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def document() -> dict[str, Any]:
    """Of two numbers, where everything but the endpoint's memory is in proportion."""
    control = {
        str(number): {
            "per_second": 1000.0,
            "create_s": number / 1000,
            "status_s": number / 10000,
            "compare_s": number / 4000,
            "reapply_s": number / 5000,
            "restore_s": number / 500,
            "rss_bytes": {"target": number << 16, "endpoint": 25 << 20, "supervisor": number << 14},
        }
        for number in (100, 1000)
    }
    found: dict[str, Any] = {
        "schema": scale_document.SCHEMA,
        "created": "2026-01-01T00:00:00Z",
        "versions": {"nvmuser": "1", "spdk": "26.01"},
        "environment": {"cpu_model": "a CPU", "cpus": 2, "kernel": "6", "hypervisor": True, "noise": 0.2},
        "rounds": 1,
        "control": control,
    }
    return found | {"slope": scale_document.slopes(found)}


def test_each_cost_has_its_slope(document: dict[str, Any]) -> None:
    slopes = document["slope"]
    assert set(slopes) == {name for name, figure in scale_document.FIGURES.items() if figure.part == "control"}
    assert slopes.pop("rss_endpoint") == pytest.approx(0)
    assert all(slope == pytest.approx(1) for slope in slopes.values())


def test_one_number_alone_has_no_slope(document: dict[str, Any]) -> None:
    del document["control"]["1000"]
    assert scale_document.slopes(document) == {}


def test_what_is_printed(document: dict[str, Any]) -> None:
    text = scale_page.text(document)
    assert "rss_bytes.endpoint" in text
    assert "target 1.00" in text
    assert "busy with something else" in text
    html = scale_page.html(document)
    assert html.count("<svg") == 2
    assert "restored after a kill, slope 1.00" in html
    assert "rss_bytes.supervisor" in html
