"""`nvmuser --version`: a line for programs, and what it runs on, whatever of that is here."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import nvmuser
from nvmuser.cli.main import cli
from nvmuser.paths import SETUP
from nvmuser.toolchain import artifact, recipe, spdk


def shown() -> list[str]:
    result = CliRunner().invoke(cli, ["--version"], prog_name="nvmuser")
    assert result.exit_code == 0
    return result.output.splitlines()


@pytest.fixture(autouse=True)
def nothing_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NVMUSER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/bin/none")
    for name in ("NVMUSER_SPDK", "NVMUSER_QEMU", "NVMUSER_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def test_without_any_part_it_says_so() -> None:
    first, *rest = shown()
    assert first == f"nvmuser, version {nvmuser.__version__}"
    lines = {line.split()[0]: line for line in rest}
    assert set(lines) == {"SPDK", "patches", "QEMU", "libvfio", "Python"}
    for name in ("SPDK", "QEMU", "libvfio"):
        assert "none: " in lines[name]
        assert SETUP in lines[name]


def test_which_spdk_and_which_patches(nothing_is_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = spdk.artifact_dir(nothing_is_here)
    prefix.mkdir(parents=True)
    artifact.write_manifest(prefix, version="26.01", cpu_level="x86-64-v2", patches=["0001-a.patch"])
    lines = shown()
    assert f"SPDK     26.01 for x86-64-v2, patches applied: 1, in {prefix}" in lines[1]
    ours = recipe.load()
    fewer = ours.patches[:-1]
    monkeypatch.setattr(recipe, "load", lambda: type("R", (), {"patches": fewer, "version": "26.01"}))
    monkeypatch.setattr(spdk, "artifact_dir", lambda cache: prefix)
    assert shown()[2] != lines[2]
