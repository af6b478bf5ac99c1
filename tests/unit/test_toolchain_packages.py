"""What is locked and listed: requirements.lock against pyproject.toml, and ci/install-packages without any rights."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def locked() -> dict[str, Version]:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return {
        canonicalize_name(name): Version(version) for name, version in re.findall(r"(?m)^([\w.-]+)==([^\s;\\]+)", text)
    }


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_every_declared_dependency_is_locked(requirement: Requirement) -> None:
    version = locked().get(canonicalize_name(requirement.name))
    assert version is not None, "run `make lock`"
    assert version in requirement.specifier, "run `make lock`"


def test_every_locked_version_has_a_hash_and_no_index_is_named() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert all("--hash=sha256:" in entry for entry in re.split(r"(?m)^(?=[\w.-]+==)", text)[1:])
    assert "://" not in text


def test_without_root_and_sudo_the_one_line_is_printed(tmp_path: Path) -> None:
    for name, body in {
        "dpkg-query": 'for last; do :; done; [ "$last" = make ] && printf installed',
        "id": "echo 1000",
        "apt-get": f"touch {tmp_path}/asked",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    for tool in ("sed", "dirname", "sh"):
        (tmp_path / tool).symlink_to(Path("/usr/bin") / tool)
    done = subprocess.run(
        [ROOT / "ci/install-packages"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1].strip()
    assert line.startswith("apt-get install -y --no-install-recommends ")
    assert "python3-venv" in line.split()
    assert "make" not in line.split()
    assert not (tmp_path / "asked").exists()


def test_with_everything_installed_apt_is_not_asked(tmp_path: Path) -> None:
    for name, body in {"dpkg-query": "printf installed", "apt-get": f"touch {tmp_path}/asked"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run([ROOT / "ci/install-packages"], env=env, check=False).returncode == 0
    assert not (tmp_path / "asked").exists()
