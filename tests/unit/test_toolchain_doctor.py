"""`nvmuser doctor`: what is amiss is said with what mends it, and only what is needed makes it fail."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from nvmuser.cli.main import cli
from nvmuser.paths import StateDir
from nvmuser.toolchain import doctor
from nvmuser.toolchain.doctor import Check


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVMUSER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("NVMUSER_QEMU", raising=False)
    monkeypatch.delenv("NVMUSER_SPDK", raising=False)


def named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_missing_parts_fail_and_name_the_command(tmp_path: Path) -> None:
    checks = doctor.examine(StateDir(tmp_path / "state"))
    assert not doctor.usable(checks)
    for name in ("SPDK", "QEMU", "guest"):
        assert not named(checks, name).ok
        assert named(checks, name).mend == "make setup"


def test_missing_hugepages_are_only_a_warning() -> None:
    check = doctor.hugetlbfs("proc /proc proc rw 0 0\n")
    assert not check.ok
    assert "mount -t hugetlbfs" in check.mend
    assert doctor.usable([check])
    assert doctor.hugetlbfs("none /dev/hugepages hugetlbfs rw 0 0\n").ok


def test_a_state_directory_too_deep_for_a_socket(tmp_path: Path) -> None:
    deep = StateDir(tmp_path / ("d" * 100))
    check = named(doctor.examine(deep), "socket paths")
    assert not check.ok
    assert check.needed
    assert "shorter" in check.mend


def test_stale_sockets_are_told_from_live_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = StateDir(Path("s"))
    state.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as live:
        dead.bind(str(state.run / "dead.sock"))
        live.bind(str(state.run / "live.sock"))
        live.listen()
        check = named(doctor.examine(state), "stale sockets")
    assert not check.ok
    assert check.mend == "rm s/run/dead.sock"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_directory_that_cannot_be_made() -> None:
    check = named(doctor.examine(StateDir(Path("/proc/nvmuser"))), "permissions")
    assert not check.ok


def test_a_state_directory_that_everybody_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    check = named(doctor.examine(StateDir(tmp_path)), "permissions")
    assert not check.ok
    assert check.mend == f"chmod o-w {tmp_path}"


def test_the_command_prints_a_line_a_check_and_fails(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--state-dir", str(tmp_path), "doctor"], standalone_mode=False)
    assert result.return_value == 1
    lines = result.output.splitlines()
    assert len(lines) == len(doctor.examine(StateDir(tmp_path)))
    assert all(line[0] in "✓✗" for line in lines)


def test_the_command_speaks_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--state-dir", str(tmp_path), "doctor", "--json"], standalone_mode=False)
    document = json.loads(result.output)
    assert document["ok"] is False
    assert {"name", "ok", "finding", "mend", "needed"} == set(document["checks"][0])
