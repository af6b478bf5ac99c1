"""How commands end that do not succeed: one line, one JSON object with `--json`, and a suggestion for a wrong name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmuser import errors
from nvmuser.cli.failure import Failure
from nvmuser.errors import NvmuserError

ROOT = Path(__file__).parents[2]
NVMUSER = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


def nvmuser(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    command = [*NVMUSER, "--state-dir", str(state), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        ("volume show nope --json", "not-found", 1),
        ("volume create --bogus --json", "usage", 2),
        ("volume create a --size many --json", "usage", 2),
        ("volume create --json", "usage", 2),
        ("frobnicate --json", "usage", 2),
        ("volume frobnicate --json", "usage", 2),
        ("status --json", "target-not-running", 1),
        ("reconcile --json", "target-not-running", 1),
        ("apply --json -f /nonexistent", "usage", 2),
        ("guest stop nobody --json", "not-found", 1),
        ("bench diff /nonexistent /nonexistent --json", "usage", 2),
    ],
)
def test_a_failure_with_json_is_one_object(arguments: str, code: str, status: int, tmp_path: Path) -> None:
    ended = nvmuser(*arguments.split(), state=tmp_path / "st")
    error = json.loads(ended.stdout)["error"]
    assert (error["code"], error["exit_status"], ended.returncode) == (code, status, status)
    assert ended.stderr == f"nvmuser: {error['message']}\n"


@pytest.mark.parametrize(
    "arguments", ["volume show nope", "guest exec box nvme list --json", "guest run --controller c -- lsblk --json"]
)
def test_without_json_stdout_stays_empty(arguments: str, tmp_path: Path) -> None:
    """Also where the word is an argument of a command in the guest."""
    ended = nvmuser(*arguments.split(), state=tmp_path / "st")
    assert ended.returncode != 0
    assert (ended.stdout, ended.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("snapshot", "did you mean `nvmuser volume snapshot`?"),
        ("volumes", "did you mean `nvmuser volume`?"),
        ("volum list", "did you mean `nvmuser volume`?"),
        ("volume lst", "did you mean `nvmuser volume list`?"),
        ("bench tunes", "did you mean `nvmuser bench tune`?"),
        ("zzz", "see `nvmuser --help`"),
    ],
)
def test_an_unknown_command_has_a_suggestion(arguments: str, hint: str, tmp_path: Path) -> None:
    ended = nvmuser(*arguments.split(), state=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"; {hint}\n")


def every_error(kind: type[NvmuserError] = NvmuserError) -> Iterator[type[NvmuserError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)


def test_every_code_is_documented_and_has_one_class() -> None:
    kinds = [error.kind for error in every_error() if error.__module__ == errors.__name__]
    assert len(set(kinds)) == len(kinds)
    codes = {word for line in (ROOT / "docs/cli.md").read_text().splitlines() for word in line.split("|")[1:2]}
    documented = {code for cell in codes for code in cell.replace("`", "").replace(" ", "").split(",")}
    assert {*kinds, "no-space", "system", "interrupted"} <= documented


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    error = OSError(28, os.strerror(28), str(tmp_path / "f"))
    assert Failure.of(error) == Failure("no-space", f"{tmp_path}/f: No space left on device", 1)


@pytest.mark.parametrize(
    ("redirection", "status", "stderr"),
    [
        ("| head -c 1 >/dev/null", 141, ""),
        (">/dev/full", 1, "nvmuser: cannot write the output: No space left on device\n"),
        (">&-", 0, ""),
        ("<&- >/dev/null", 0, ""),
        ("2>&- >/dev/null", 0, ""),
    ],
)
def test_output_that_cannot_be_written(redirection: str, status: int, stderr: str) -> None:
    script = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    # Larger than a pipe: the command is still writing when its reader is gone.
    many = "import sys; from nvmuser.model import spec_schema as s; s.schema = lambda: ['x' * 100] * 9999; "
    command = [sys.executable, "-c", many + NVMUSER[2], "schema"]
    ended = subprocess.run(["bash", "-c", script, "-", *command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (status, stderr)


def test_help_loads_no_command(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from nvmuser.cli.main import main
        try:
            main()
        except SystemExit:
            loaded = {name for name in sys.modules if name.startswith("nvmuser.cli.")}
            print(sorted(loaded | sys.modules.keys() & {"spdk", "rich", "numpy", "yaml"}))
    """
    ended = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    loaded = ended.stdout.splitlines()[-1]
    assert loaded == "['nvmuser.cli.failure', 'nvmuser.cli.groups', 'nvmuser.cli.main']"
