"""nvmuser.toolchain.steps: what is run, what is shown, and that two set-ups do not meet."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from nvmuser.errors import SetupError
from nvmuser.toolchain import proc, steps
from nvmuser.toolchain.steps import Reporter, Step


class Things:
    """A made-up world: steps that make things, and what was made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def step(self, name: str, run: Callable[[Reporter], None] | None = None) -> Step:
        def make(reporter: Reporter) -> None:
            if run is not None:
                run(reporter)
            self.made.append(name)

        return Step(name, f"the {name}", lambda: name in self.made, make)


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=100), text


def test_steps_run_in_order_and_only_once(tmp_path: Path) -> None:
    things = Things()
    row = [things.step("hammer"), things.step("nail")]
    quiet, _ = console()
    assert set(steps.run_steps(row, tmp_path, quiet)) == {"hammer", "nail"}
    assert things.made == ["hammer", "nail"]
    assert steps.run_steps(row, tmp_path, quiet) == {"hammer": 0.0, "nail": 0.0}
    assert things.made == ["hammer", "nail"]


def test_a_failed_step_stops_the_row_and_names_its_log(tmp_path: Path) -> None:
    things = Things()

    def fail(reporter: Reporter) -> None:
        proc.run(["sh", "-c", "echo the reason; exit 1"], log=reporter.log)

    row = [things.step("hammer"), things.step("nail", fail), things.step("board")]
    shown, text = console()
    with pytest.raises(SetupError) as caught:
        steps.run_steps(row, tmp_path, shown)
    assert things.made == ["hammer"]
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"(log: {tmp_path}/nail.log)")
    assert "the reason" in text.getvalue()
    assert "the reason" in (tmp_path / "nail.log").read_text()


def test_running_again_goes_on_where_it_stopped(tmp_path: Path) -> None:
    things = Things()
    trouble = [SetupError("no network")]

    def once(_reporter: Reporter) -> None:
        if trouble:
            raise trouble.pop()

    row = [things.step("hammer"), things.step("nail", once)]
    quiet, _ = console()
    with pytest.raises(SetupError):
        steps.run_steps(row, tmp_path, quiet)
    steps.run_steps(row, tmp_path, quiet)
    assert things.made == ["hammer", "nail"]


def test_without_a_terminal_a_long_step_says_so_from_time_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_QUIET_SECONDS", 0.01)
    shown, text = console()

    def long(reporter: Reporter) -> None:
        reporter.update("compiling [x]", 0.5)
        for _ in range(500):
            if "compiling" in text.getvalue():
                return
            threading.Event().wait(0.01)

    steps.run_steps([Things().step("hammer", long)], tmp_path, shown)
    assert "50% compiling [x]" in text.getvalue()


def test_on_a_terminal_progress_is_shown(tmp_path: Path) -> None:
    shown, text = console(terminal=True)
    row = [Things().step("hammer", lambda reporter: reporter.update("compiling [x]", 0.5))]
    steps.run_steps(row, tmp_path, shown)
    assert "the hammer" in text.getvalue()


def test_a_second_set_up_waits_for_the_first(tmp_path: Path) -> None:
    entered = threading.Event()
    shown, text = console()

    def second() -> None:
        with steps.exclusive(tmp_path, shown):
            entered.set()

    quiet, _ = console()
    thread = threading.Thread(target=second)
    with steps.exclusive(tmp_path, quiet):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(5)
    assert entered.is_set()
    assert "another nvmuser setup" in text.getvalue()


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    quiet, _ = console()
    with pytest.raises(SetupError, match="NVMUSER_CACHE"), steps.exclusive(tmp_path / "file/cache", quiet):
        pass
