"""`nvmuser doctor`: what is wrong is printed with its fix; only what is needed makes it fail."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nvmuser import doctor
from nvmuser.cli.main import cli
from nvmuser.doctor import machine, state_dir
from nvmuser.doctor.check import Finding
from nvmuser.errors import SetupError
from nvmuser.paths import SETUP, StateDir


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVMUSER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("NVMUSER_QEMU", raising=False)
    monkeypatch.delenv("NVMUSER_SPDK", raising=False)


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_missing_parts_fail_and_name_the_command(tmp_path: Path) -> None:
    findings = doctor.examine(StateDir(tmp_path / "state"))
    assert not doctor.usable(findings)
    for name in ("SPDK", "QEMU", "guest"):
        assert not named(findings, name).ok
        assert named(findings, name).fix == SETUP


def test_what_is_optional_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("proc /proc proc rw 0 0\n")
    (tmp_path / "one").write_text("none /dev/hugepages hugetlbfs rw 0 0\n")
    (missing,) = machine.hugetlbfs(StateDir(tmp_path), tmp_path / "none")
    assert (missing.level, missing.ok, bool(missing.gain)) == ("optional", False, True)
    assert "mount -t hugetlbfs" in missing.fix
    assert doctor.usable([missing])
    (there,) = machine.hugetlbfs(StateDir(tmp_path), tmp_path / "one")
    assert there.level == "ok"


def test_a_check_that_cannot_look_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_disk(_state: StateDir) -> Iterator[Finding]:
        yield Finding("half", True, "looked at")
        raise SetupError("no such thing")

    monkeypatch.setattr(doctor, "CHECKS", (broken_disk,))
    half, broken = doctor.examine(StateDir(tmp_path))
    assert half.ok
    assert (broken.name, broken.level, broken.text) == (
        "broken disk",
        "warning",
        "could not be looked at: no such thing",
    )


def test_every_check_says_what_it_checks() -> None:
    assert all(check.__doc__ for check in doctor.CHECKS)
    assert len({check.__name__ for check in doctor.CHECKS}) == len(doctor.CHECKS)


def test_a_large_log_is_a_warning(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert list(state_dir.log_sizes(state)) == []
    state.logs.mkdir()
    (state.logs / "target.log").write_text("x")
    (small,) = state_dir.log_sizes(state)
    assert small.level == "ok"
    os.truncate(state.logs / "target.log", 1 << 30)
    (large,) = state_dir.log_sizes(state)
    assert (large.level, large.text) == ("warning", f"1024.0 MiB in {state.logs}; large: target.log")


def test_a_state_directory_too_deep_for_a_socket(tmp_path: Path) -> None:
    deep = StateDir(tmp_path / ("d" * 100))
    finding = named(doctor.examine(deep), "socket paths")
    assert not finding.ok
    assert finding.needed
    assert "shorter" in finding.fix


def test_stale_sockets_are_told_from_live_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = StateDir(Path("s"))
    state.target_dir("c").mkdir(parents=True)
    state.guest_dir("c").mkdir(parents=True)
    with contextlib.ExitStack() as sockets:

        def bound(path: Path) -> socket.socket:
            made = sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            made.bind(str(path))
            return made

        bound(state.run / "dead.sock")
        bound(state.socket("c"))
        bound(state.rpc_socket).listen()
        listener = bound(state.socket("c", direct=True))
        listener.listen()
        (finding,) = state_dir.stale_sockets(state)
        with pytest.raises(BlockingIOError):
            listener.accept()  # a connection would count as a guest
    assert not finding.ok
    assert finding.fix == "rm s/run/dead.sock s/run/guest/c/cntrl"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_directory_that_cannot_be_made() -> None:
    finding = named(doctor.examine(StateDir(Path("/proc/nvmuser"))), "permissions")
    assert not finding.ok


def test_a_state_directory_that_everybody_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    finding = named(doctor.examine(StateDir(tmp_path)), "permissions")
    assert not finding.ok
    assert finding.fix == f"chmod o-w {tmp_path}"


def test_the_command_prints_a_line_a_check_and_fails(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--state-dir", str(tmp_path), "doctor"], standalone_mode=False)
    assert result.return_value == 1
    lines = result.output.splitlines()
    assert len(lines) == len(doctor.examine(StateDir(tmp_path)))
    assert all(line[0] in "✓✗!○" for line in lines)


def test_the_command_speaks_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--state-dir", str(tmp_path), "doctor", "--json"], standalone_mode=False)
    document = json.loads(result.output)
    assert document["ok"] is False
    assert set(document["checks"][0]) == {"name", "level", "finding", "ok", "fix", "needed", "gain"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may use what is another user's")
def test_a_state_directory_of_a_service_is_right_for_root(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    finding = named(doctor.examine(StateDir(tmp_path)), "permissions")
    assert finding.ok
    assert "user 65534's" in finding.text
