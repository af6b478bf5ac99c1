"""The report of a tuning run: the variants, what each gains, and no number where it is unsure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from rich.console import Console
from test_bench_analysis import HEADER, JOB, run
from test_bench_report import Links

from nvmuser.bench.report import records
from nvmuser.bench.report.records import Comparison
from nvmuser.bench.rounds import variants
from nvmuser.bench.scenarios import tune
from nvmuser.cli.bench_compare import report_command
from nvmuser.cli.bench_tune import tune as command
from nvmuser.errors import UsageError

VALUES = {
    "default": [100.0, 100, 100],
    "mapped": [150.0, 160, 140],
    "dynamic": [90.0, 110, 101],
    "apart": [10.0, 99, 9],
}


def comparison(values: Mapping[str, Sequence[float]]) -> Comparison:
    settings = {**cast(dict[str, Any], HEADER["settings"]), "variants": dict.fromkeys(values, "something")}
    header: dict[str, Any] = {**HEADER, "base": "default", "peers": list(values), "settings": settings}
    runs = [run(name, number, iops) for name, row in values.items() for number, iops in enumerate(row)]
    return Comparison(header, runs, {"every-core": "there is one core"}, {"noise": [0.04], "seconds": 60.0})


def test_gains_are_the_variant_over_what_is_shipped() -> None:
    found = tune.summary(comparison(VALUES))
    assert found["gains"][JOB]["mapped"] == 1.5
    assert found["gains_ci"][JOB]["mapped"] == [1.4, 1.6]
    assert found["gains"][JOB]["apart"] is None
    assert found["default_iops"] == {JOB: 100}
    assert found["complete"]


def test_the_table_marks_what_is_no_change_and_what_is_noise() -> None:
    lines = tune.markdown(comparison(VALUES)).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines if line.startswith("| ")}
    assert cells["default"] == "100 IOPS"
    assert cells["mapped"] == "1.50"
    assert cells["dynamic"] == "1.01 ≈"
    assert cells["apart"] == "noisy"
    assert any("every-core: there is one core" in line for line in lines)
    unsteady = comparison(VALUES)
    unsteady.runs = [replace(run, steady=run.peer != "mapped") for run in unsteady.runs]
    assert "| 1.50\N{DAGGER} |" in tune.markdown(unsteady)


def test_the_table_has_host_cpu_at_both_depths() -> None:
    found = comparison(VALUES)
    found.runs += [replace(run, job="randread-4k-qd32-irq", host_us_per_io=run.iops) for run in found.runs]
    lines = [line.split("|") for line in tune.markdown(found).splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in lines[0][-3:-1]] == [f"host CPU per I/O, randread-4k-qd{n}-irq" for n in (1, 32)]
    assert [cell.strip() for cell in lines[2][-3:-1]] == ["1.00 ≈", "1.50"]


def test_a_transports_variant_changes_one_parameter() -> None:
    assert [variant.name for variant in variants.VARIANTS if len(variant.transport) > 1] == []


def test_the_usual_run_ends_within_its_time() -> None:
    plan = tune.TunePlan(tune.choose([]))
    assert {case.job.name for case in plan.session.cases} >= {"randread-4k-qd32-irq", "randwrite-4k-qd32-irq"}
    # A run with its warm-up, and what starting and ending fio took on a machine that was rather busy; a guest's boot.
    a_run, a_boot = 1.0 + 0.5 + 1.0, 3.0
    seconds = len(plan.variants) * (a_boot + plan.rounds * len(plan.session.cases) * a_run)
    assert seconds < 18 * 60


def test_the_terminal_has_a_row_a_variant() -> None:
    found = comparison(VALUES)
    jobs = [case.job.name for case in tune.TunePlan(tune.choose([])).session.cases]
    found.runs = [replace(run, job=job) for job in jobs for run in found.runs]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(tune.table(found))
    assert all(name in capture.get() for name in VALUES)
    assert "…" not in capture.get()


@pytest.mark.parametrize(
    ("noise", "words"), [(0.04, None), (0.08, "not quite quiet (8 %)"), (0.2, "busy with something else: 20 %")]
)
def test_a_busy_machine_is_named(noise: float, words: str | None) -> None:
    found = comparison(VALUES)
    found.footer = {"noise": [noise], "seconds": 60.0}
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tune.table(found))
    for text in (tune.markdown(found), capture.get()):
        assert words is None or words in text
        assert ("busy" in text, "not quite quiet" in text) == (noise > 0.1, 0.05 < noise <= 0.1)


def test_variants_have_names_of_their_own_and_differ_from_the_base() -> None:
    names = [variant.name for variant in variants.VARIANTS]
    assert names[0] == variants.BASE
    assert len(set(names)) == len(names)
    plain = variants.Variant("", "")
    same = [v.name for v in variants.VARIANTS if variants.Variant("", "", **_settings(v)) == plain]
    assert same == [variants.BASE]


def _settings(variant: variants.Variant) -> dict[str, Any]:
    return {key: value for key, value in vars(variant).items() if key not in ("name", "what")}


def test_the_base_is_always_measured() -> None:
    assert [variant.name for variant in tune.choose(["mapped"])] == ["default", "mapped"]
    assert tune.choose([]) == [variant for variant in variants.VARIANTS if variant.usual]
    assert [variant.name for variant in tune.choose(["beside"])] == ["default", "beside"]
    with pytest.raises(UsageError, match="no variant is called 'x'"):
        tune.choose(["x"])


def test_the_command_refuses_an_unknown_variant() -> None:
    with pytest.raises(UsageError, match="choose among default"):
        CliRunner().invoke(command, ["--variants", "x"], catch_exceptions=False)


def test_the_report_command_knows_a_tuning_run(tmp_path: Path) -> None:
    found = comparison(VALUES)
    with records.Writer(tmp_path / records.FILE) as writer:
        writer.header(found.header)
        for measured in found.runs:
            writer.run(measured)
    done = CliRunner().invoke(report_command, [str(tmp_path), "--markdown"], catch_exceptions=False)
    assert "| mapped |" in done.stdout
    assert "1.50" in done.stdout
    assert "did not come to its end" in done.stdout
    page = tmp_path / "x.html"
    CliRunner().invoke(report_command, [str(tmp_path), "-o", str(page)], catch_exceptions=False)
    links = Links()
    links.feed(page.read_text())
    assert "svg" in links.tags
    assert not {"script", "link", "img", "iframe"} & links.tags
    assert all(text in page.read_text() for text in ("mapped", "1.50", "noisy", "did not come to its end"))


def test_a_page_without_enough_rounds_draws_nothing() -> None:
    page = tune.html(comparison({"default": [100.0], "mapped": [150.0]}))
    assert "<svg" not in page
    assert "too few" in page
