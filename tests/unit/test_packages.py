"""What goes into the Debian packages agrees: versions, licences, units, completions."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nvmuser
from nvmuser import extras
from nvmuser.toolchain import recipe

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = ROOT / "debian"
FACTS = {"version": "26.01", "package": "ceph 20.2.4+ds-2", "fio": "3.41-2", "cpu_level": "x86-64-v3"}
UNITS = sorted(DEBIAN.glob("*.service"))


@pytest.fixture
def sbom(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DEBIAN))
    return importlib.import_module("sbom")


def test_all_versions_are_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (first, *_) = (DEBIAN / "changelog").read_text().splitlines()
    assert re.match(r"nvmuser \((.+)\)", first)[1] == project["version"] == nvmuser.__version__  # type: ignore[index]


def test_the_packages_ask_for_what_the_project_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    control = (DEBIAN / "control").read_text()
    vendored = {"qemu.qmp", "spdk"}
    names = {"pyyaml": "yaml"}
    optional = project["optional-dependencies"]
    versioned = [requirement for extra in ("api", "client", "top", "fleet", "sma") for requirement in optional[extra]]
    for requirement in (*project["dependencies"], *optional["bench"], *versioned):
        name, _, least = re.split(r"([=<>]+)", requirement)
        assert name in vendored or f"python3-{names.get(name, name)}" in control, requirement
        if requirement in versioned:
            # PyPI counts protobuf's versions for Python, which are one ahead.
            least = least.replace("4.", "3.") if name == "protobuf" else least
            assert f"python3-{name} (>= {least})" in control


def test_the_command_that_a_missing_extra_names_installs_what_the_packages_ask_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    control = (DEBIAN / "control").read_text()
    monkeypatch.setenv("NVMUSER_PREFIX", str(tmp_path))
    for extra in extras.EXTRAS:
        command = re.search("`apt install (.+)`", extras.how_to_install(extra))
        assert command
        for package in command[1].split():
            ours = package.startswith("nvmuser")
            assert f"Package: {package}\n" in control if ours else re.search(rf"Suggests:.* {package}\b", control)


def test_the_list_of_parts_is_complete_and_says_what_copyright_says(sbom: ModuleType) -> None:
    document: dict[str, Any] = sbom.document(FACTS, recipe.load())
    names = {package["name"]: package for package in document["packages"]}
    copyright = (DEBIAN / "copyright").read_text()
    for name in ("SPDK", "DPDK", "libvfio-user", "isa-l", "fio", "qemu.qmp"):
        assert names[name]["versionInfo"]
        assert name.removesuffix(".qmp") in copyright
    assert {file["fileName"].rpartition("/")[2] for file in document["files"]} == {
        patch.name for patch in recipe.load().patches
    }
    identifiers = [one["SPDXID"] for one in (*document["packages"], *document["files"])]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch(r"SPDXRef-[\w.-]+", one) for one in identifiers)
    for relation in document["relationships"]:
        assert {relation["spdxElementId"], relation["relatedSpdxElement"]} <= {*identifiers, "SPDXRef-DOCUMENT"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_may_do_little(unit: Path) -> None:
    """systemd's own judgement: 0 is nothing, 10 is anything."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=40", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure, done.stderr
    assert float(exposure[1]) <= 4.0
    assert done.returncode == 0


def test_each_row_of_the_security_table_names_tests_that_are_there() -> None:
    table = [line for line in (ROOT / "docs/security.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(table) >= 10
    for row in table:
        tests = re.findall(r"`(tests/[\w/]+\.py)`", row.rstrip(" |").rpartition("|")[2])
        assert tests, row
        assert all((ROOT / test).exists() for test in tests), row


@pytest.mark.skipif(not shutil.which("apparmor_parser"), reason="needs apparmor_parser")
def test_apparmor_takes_the_profile() -> None:
    profile = DEBIAN / "examples/apparmor.nvmuser-target"
    done = subprocess.run(["apparmor_parser", "-QK", profile], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
