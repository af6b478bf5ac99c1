"""`nvmuser top`: rates between two samples, and its screen in 80 columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_run import Run, ok
from textual.widgets import DataTable, Static

from nvmuser.errors import NvmuserError
from nvmuser.paths import StateDir
from nvmuser.reconcile.statistics import Counters, Reactor, Statistics
from nvmuser.top import screen as screen_module
from nvmuser.top.sample import SORTS, Sample, rates
from nvmuser.top.screen import Top

NONE = Counters(0, 0, 0.0)
TARGET = {"ready": True, "answers": True, "standby": None, "restarts": 1}
GUEST = {"controller": "c", "pid": 7, "phase": "serving", "recoveries": 2, "last_stall": 0.3, "longest_stall": 0.41}


def sample(at: float, reads: dict[str, int], busy: float = 0.0, **facts: Any) -> Sample:
    volumes = {
        name: Statistics(name, Counters(count, count * 4096, count * 1e-4), NONE, NONE) for name, count in reads.items()
    }
    return Sample(at, facts, {"spdk": [Reactor(1, busy, at - busy)]}, volumes)


def test_rates_are_of_what_was_done_in_between() -> None:
    found = rates(sample(10, {"a": 100, "b": 5}, 1.0), sample(12, {"a": 300, "b": 5}, 2.5))
    first, second = found.volumes
    assert (first.volume, first.read_iops, first.read_bytes, first.read_us) == ("a", 100, 100 * 4096, 100)
    assert (second.volume, second.read_iops, second.read_us) == ("b", 0, None)
    assert [(one.core, one.percent) for one in found.reactors] == [(1, 75.0)]


def test_what_is_new_or_began_anew_has_no_rate_yet() -> None:
    found = rates(sample(10, {"a": 100, "gone": 1}, 5.0), sample(12, {"a": 3, "new": 7}, 0.5))
    assert found.volumes == ()
    assert found.reactors == ()


@pytest.mark.parametrize(("sort", "names"), [("iops", "cab"), ("bandwidth", "cab"), ("name", "abc")])
def test_sorted(sort: str, names: str) -> None:
    before = sample(0, dict.fromkeys("abc", 0))
    found = rates(before, sample(1, {"a": 5, "b": 0, "c": 9}), sort)
    assert "".join(row.volume for row in found.volumes) == names


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[Sample | NvmuserError]:
    """What is seen, one after the other; the last for ever."""
    found: list[Sample | NvmuserError] = [
        sample(1, {"a": 0, "b": 0}),
        sample(2, {"a": 10, "b": 2500}, 0.5, targets={"spdk": TARGET}, guests=[GUEST], errors=["disk full"]),
    ]

    async def take(state: StateDir) -> Sample:
        one = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(one, NvmuserError):
            raise one
        return one

    monkeypatch.setattr(screen_module, "take", take)
    return found


async def test_the_screen(samples: list[Sample | NvmuserError], tmp_path: Path) -> None:
    app = Top(StateDir(tmp_path), 3600, "iops")
    async with app.run_test(size=(80, 24)) as pilot:
        await app.look()
        volumes = app.query_one("#volumes", DataTable)
        assert volumes.get_row_at(0)[:3] == ["b", "2,500", "0"]
        assert volumes.get_row_at(1)[:2] == ["a", "10"]
        assert volumes.virtual_size.width <= 80
        assert app.query_one("#guests", DataTable).get_row_at(0) == ["c", "7", "serving", "2", "0.30 s", "0.41 s"]
        shown = str(app.query_one("#head", Static).render())
        assert "target spdk: ready, 1 restarts; core 1 50 %" in shown
        assert "! disk full" in shown
        samples[:] = [sample(3, {"a": 20_000, "b": 2500})]
        await pilot.press("space")
        await app.look()
        assert volumes.get_row_at(0)[0] == "b"  # it stands still
        await pilot.press("space", "s")
        await app.look()
        assert volumes.get_row_at(0)[0] == "a"
        await pilot.press("q")


async def test_a_host_that_does_not_answer_is_named(samples: list[Sample | NvmuserError], tmp_path: Path) -> None:
    samples[:] = [NvmuserError("https://host2: refused")]
    app = Top(StateDir(tmp_path), 3600, "iops")
    async with app.run_test(size=(80, 24)):
        assert "https://host2: refused" in str(app.query_one("#head", Static).render())


def test_the_command_without_a_target(run: Run) -> None:
    found = json.loads(ok(run("top", "--once", "--interval", "0.2", "--json")))
    assert (found["volumes"], found["reactors"], found["targets"]) == ([], [], {})
    assert run("top", "--json")[0] == 2
    status, out, err = run("top")
    assert (status, out) == (2, "")
    assert "pass --once" in err
    assert set(SORTS) == {"iops", "bandwidth", "latency", "name"}
