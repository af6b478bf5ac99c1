"""No traceback reaches a person: every command, in surroundings in which it cannot succeed, ends with one line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from every_command import commands

from nvmuser.cli.main import cli
from nvmuser.paths import StateDir

DRIVER = Path(__file__).with_name("every_command.py")
NVMUSER = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")
HARMLESS = ("nvmuser: ", "note: ", "[")
"""How lines on stderr begin: the error, notes, and the progress of `bench`."""


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A deployment with a volume and a controller, in a directory that others can reach."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    state = StateDir(tmp_path / "st")
    for words in ("volume create a --size 1M", "controller create a --attach a"):
        subprocess.run([*NVMUSER, "--state-dir", str(state.root), *words.split()], check=True, capture_output=True)
    (state.run / "vm/a").mkdir(parents=True)
    state.logs.mkdir()
    (state.logs / "target.log").write_text("a line\n")
    return state


def ended(state: StateDir, *options: str, within: tuple[str, ...] = ()) -> Iterator[tuple[str, int, str, str]]:
    """Words, status, stdout and stderr of every command."""
    command = [*within, sys.executable, str(DRIVER), str(state.root), *options]
    # With nothing in the cache, what would take long (a guest, a benchmark, a build) ends at once.
    env = {
        **os.environ,
        "NVMUSER_CACHE": "/proc/1/nvmuser",
        "NVMUSER_SPDK": "",
        "NVMUSER_QEMU": "",
        "PATH": "/usr/bin:/bin",
    }
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=state.root.parent)
    for line in answer.stdout.splitlines():
        found = json.loads(line)
        yield " ".join(found["words"]), found["status"], found["out"], found["err"]


def check(results: Iterator[tuple[str, int, str, str]]) -> dict[str, tuple[int, str, str]]:
    """Every command has run, and each has ended in good order."""
    seen = {words: (status, out, err) for words, status, out, err in results}
    assert len(seen) == sum(1 for _ in commands(cli, ()))
    for words, (status, out, err) in seen.items():
        lines = err.splitlines()
        assert "Traceback" not in out + err, f"{words}\n{err}"
        assert "[Errno" not in err, f"{words}\n{err}"
        assert all(line.startswith(HARMLESS) for line in lines), f"{words}\n{err}"
        errors = [line for line in lines if line.startswith("nvmuser: ")]
        assert status >= 0, f"{words}: signal {-status}"
        silent = status in (0, 141) or words == "doctor"
        assert len(errors) == (0 if silent else 1), f"{words}: {status}\n{err}"
    return seen


def test_a_directory_that_may_not_be_entered(state: StateDir) -> None:
    state.root.chmod(0o700 if os.geteuid() == 0 else 0)
    try:
        seen = check(ended(state, "--as-nobody"))
    finally:
        state.root.chmod(0o750)
    for words, (_, out, err) in seen.items():
        assert "Permission denied" not in out + err, f"{words}: not in the words of hostfs.permissions\n{err}"
    for words in (
        "status",
        "volume list",
        "controller list",
        "guest list",
        "target logs",
        "target start",
        "guest qemu-args a",
        "remote host-id",
        "rpc bdev_get_bdevs",
        "export",
    ):
        status, out, err = seen[words]
        assert (status, out) == (1, ""), words
        assert f"{state.root}: user " in err, words
        assert "may not enter it (it belongs to " in err
    assert "stale sockets: none" not in seen["doctor"][1]


def test_a_directory_that_may_be_entered_and_not_read(state: StateDir) -> None:
    """As one is whose sockets are shared: others pass, and see nothing."""
    if os.geteuid():
        pytest.skip("the owner of a file can always be let in by its mode: only another user is kept out")
    state.root.chmod(0o711)
    state.run.chmod(0o711)
    for path in (state.logs, state.run / "vm"):
        path.chmod(0o700)
    seen = check(ended(state, "--as-nobody"))
    for words, what in (
        ("volume list", state.store), ("guest list", state.run / "vm"), ("target logs", state.logs),
    ):  # fmt: skip
        status, out, err = seen[words]
        assert (status, out) == (1, ""), words
        assert f"{what}: user nobody may not " in err


def execute(state: StateDir, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(state.store)) as store, store:
        store.execute(statement)


def newer(state: StateDir) -> None:
    execute(state, "PRAGMA user_version = 99")


def truncated(state: StateDir) -> None:
    os.truncate(state.store, 5000)


def garbage(state: StateDir) -> None:
    state.store.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)


def text(state: StateDir) -> None:
    state.store.write_text("volumes: []\n")


def unknown_objects(state: StateDir) -> None:
    execute(state, "INSERT INTO object VALUES ('mystery', 'm', '{}', 0, 0)")


def broken_objects(state: StateDir) -> None:
    execute(state, "UPDATE object SET spec = '{' WHERE kind = 'volume'")


def objects_without_fields(state: StateDir) -> None:
    execute(state, "UPDATE object SET spec = '[]'")


def undecodable_objects(state: StateDir) -> None:
    execute(state, "UPDATE object SET spec = CAST(x'7bff7d' AS TEXT)")


def references_to_nothing(state: StateDir) -> None:
    execute(state, "DELETE FROM object WHERE kind = 'volume'")


def broken_records(state: StateDir) -> None:
    (state.run / "vm/a/guest.json").write_text("{")
    state.lock.write_text("no number")


def a_file(state: StateDir) -> None:
    shutil.rmtree(state.root)
    state.root.write_text("not a directory")


def files_for_directories(state: StateDir) -> None:
    shutil.rmtree(state.run)
    shutil.rmtree(state.logs)
    state.run.write_text("")
    state.logs.write_text("")


def directories_for_files(state: StateDir) -> None:
    state.store.unlink()
    for path in (state.store, state.control_socket, state.rpc_socket, state.lock, state.logs / "target.log"):
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)


def files_for_sockets(state: StateDir) -> None:
    for path in (state.control_socket, state.rpc_socket):
        path.write_text("")


@pytest.mark.parametrize(
    "damage",
    [
        newer, truncated, garbage, text, unknown_objects, broken_objects, objects_without_fields,
        undecodable_objects, references_to_nothing, broken_records,
        a_file, files_for_directories, directories_for_files, files_for_sockets,
    ],
)  # fmt: skip
def test_a_damaged_directory(state: StateDir, damage: Callable[[StateDir], None]) -> None:
    damage(state)
    check(ended(state))


def test_a_store_of_a_newer_version_is_named(state: StateDir) -> None:
    newer(state)
    status, _, err = check(ended(state))["volume list"]
    assert status == 1
    assert "schema version 99" in err


def test_a_full_file_system(state: StateDir) -> None:
    """A small tmpfs in a mount namespace of its own, filled to the last byte."""
    script = 'mount -t tmpfs -o size=256k none "$1" && cp -a "$2/." "$1" && shift 2 && exec "$@"'
    copy = state.root.with_name("copy")
    state.root.rename(copy)
    state.root.mkdir()
    user = () if os.geteuid() == 0 else ("--map-root-user",)
    within = ("unshare", *user, "--mount", "sh", "-c", script, "-", str(state.root), str(copy))
    seen = check(ended(state, "--fill", within=within))
    # Changes are recorded all the same: the store has its room (docs/survival.md). Other files have none.
    assert seen["remote host-id"][0] == 1
    assert "No space left" in seen["remote host-id"][2]


def test_an_output_that_nobody_reads(state: StateDir) -> None:
    seen = check(ended(state, "--closed-stdout"))
    assert seen["volume list"][0] == 141
