"""`nvmuser uninstall` removes what nvmuser has made, nothing else, and nothing that is in use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nvmuser.cli import uninstall
from nvmuser.cli.main import cli
from nvmuser.errors import ConflictError
from nvmuser.hostfs.process import start_time
from nvmuser.paths import StateDir


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    """A deployment, a cache and a unit, each beside things of others."""
    state = StateDir(tmp_path / "st")
    monkeypatch.setenv("NVMUSER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(uninstall, "_UNITS", tmp_path / "units")
    nvmuser(state, "volume", "create", "a", "--size", "1M")
    nvmuser(state, "volume", "create", "b", "--size", "1M", "--path", str(tmp_path / "b.img"))
    for path in ("cache/spdk-26.01-abc/bin", "cache/log", "units/multi-user.target.wants", "st/run"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/sleep", tmp_path / "cache/spdk-26.01-abc/bin/nvmf_tgt")
    unit = nvmuser(state, "target", "unit").output
    (tmp_path / "units/ours.service").write_text(unit)
    (tmp_path / "units/other.service").write_text(unit.replace(str(state.root), "/srv/other"))
    (tmp_path / "units/multi-user.target.wants/ours.service").symlink_to("../ours.service")
    return state


def nvmuser(state: StateDir, *words: str) -> Result:
    result = CliRunner().invoke(cli, ["--state-dir", str(state.root), *words], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_it_only_lists_unless_told(state: StateDir, tmp_path: Path) -> None:
    before = files(tmp_path)
    shown = nvmuser(state, "uninstall").output
    assert files(tmp_path) == before
    for words in ("would remove", f"{tmp_path}/cache: SPDK", "ours.service: a systemd unit", "with 2 volumes"):
        assert words in shown
    assert f"stays {tmp_path}/b.img" in shown
    assert "other.service" not in shown
    assert "pass --yes" in shown


def test_what_nvmuser_made_is_gone_and_the_rest_is_there(state: StateDir, tmp_path: Path) -> None:
    (tmp_path / "cache/thesis.tex").write_text("")
    done = json.loads(nvmuser(state, "uninstall", "--yes", "--json").output)
    assert done["removed"] is True
    assert done["stays"] == [f"{tmp_path}/b.img"]
    assert files(tmp_path) == {
        "b.img", "cache", "cache/thesis.tex", "units", "units/multi-user.target.wants", "units/other.service",
    }  # fmt: skip
    assert nvmuser(state, "uninstall").output == "nothing is there\n"


def test_the_state_directory_may_stay(state: StateDir, tmp_path: Path) -> None:
    nvmuser(state, "uninstall", "--yes", "--keep-state")
    assert state.store.exists()
    assert not (tmp_path / "cache").exists()


def test_a_damaged_store_is_no_reason_to_keep_it(state: StateDir) -> None:
    state.store.write_bytes(b"damaged" * 1000)
    nvmuser(state, "uninstall", "--yes")
    assert not state.root.exists()


def test_refused_while_the_target_lives(state: StateDir) -> None:
    (state.run / "target-1.pid").symlink_to(f"{os.getpid()}:{start_time(os.getpid())}")
    with pytest.raises(ConflictError, match="target live; `nvmuser target stop`"):
        nvmuser(state, "uninstall", "--yes")
    assert state.store.exists()


def test_refused_while_another_deployment_runs_what_is_in_the_cache(state: StateDir, tmp_path: Path) -> None:
    program = tmp_path / "cache/spdk-26.01-abc/bin/nvmf_tgt"
    with subprocess.Popen([program, "1000"]) as process:
        try:
            with pytest.raises(ConflictError, match=f"process {process.pid} runs {program}"):
                nvmuser(state, "uninstall", "--yes")
        finally:
            process.kill()
    assert program.exists()
