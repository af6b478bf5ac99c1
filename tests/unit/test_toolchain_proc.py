"""nvmuser.toolchain.proc: what a caller can rely on when it runs a program."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.toolchain import proc


def test_output_returns_what_the_program_printed() -> None:
    assert proc.output(["sh", "-c", "echo one; echo two >&2"]) == "one\n"


def test_a_failure_shows_the_copyable_command_and_the_tail_of_the_output() -> None:
    with pytest.raises(proc.CommandError) as caught:
        proc.output(["sh", "-c", "for i in $(seq 100); do echo line $i; done; exit 3"])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("sh -c 'for i in")
    assert lines[0].endswith("exit status 3")
    assert lines[-1] == "line 100"
    assert len(lines) == 1 + proc.TAIL_LINES


def test_a_missing_program_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match="No such file"):
        proc.output(["/nonexistent/program"])


def test_output_ends_a_program_that_takes_too_long() -> None:
    with pytest.raises(proc.CommandError, match=r"longer than 0\.1 s"):
        proc.output(["sleep", "60"], timeout=0.1)


def test_run_logs_the_command_with_its_directory_and_all_output(tmp_path: Path) -> None:
    log = tmp_path / "deep/log"
    seen: list[str] = []
    proc.run(["sh", "-c", "echo out; echo err >&2"], log=log, cwd=tmp_path, on_line=seen.append)
    assert log.read_text() == f"$ cd {tmp_path} && sh -c 'echo out; echo err >&2'\nout\nerr\n"
    assert seen == ["out", "err"]


def test_a_carriage_return_ends_a_line_too(tmp_path: Path) -> None:
    seen: list[str] = []
    proc.run(["printf", r"10%%\r20%%\r\ndone"], log=tmp_path / "log", on_line=seen.append)
    assert seen == ["10%", "20%", "done"]


def test_run_ends_a_program_that_takes_too_long(tmp_path: Path) -> None:
    with pytest.raises(proc.CommandError) as caught:
        proc.run(["sh", "-c", "echo started; sleep 60"], log=tmp_path / "log", timeout=0.5)
    assert caught.value.status == 124
    assert caught.value.tail == ("started",)


def test_run_leaves_nothing_behind_when_it_is_interrupted(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(int(word) for word in line.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proc.run(["sh", "-c", "sleep 60 & echo $$ $!; wait"], log=tmp_path / "log", on_line=interrupt)
    assert len(pids) == 2
    assert all(_gone(pid) for pid in pids)


def _gone(pid: int) -> bool:
    """Whether a process ends within five seconds; it is not our child, so its end is seen by asking."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        signal.sigtimedwait([signal.SIGCHLD], 0.01)
    return False


def test_a_surrounding_make_does_not_reach_into_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    printed = proc.output(["env"], env={"ADDED": "yes"})
    assert "MAKEFLAGS" not in printed
    assert "LD_LIBRARY_PATH" not in printed
    assert "ADDED=yes" in printed.splitlines()
