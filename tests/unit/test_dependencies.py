"""What is imported is declared in pyproject.toml, and what an extra brings is imported only by the package that needs
it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nvmuser.extras import EXTRAS

ROOT = Path(__file__).parents[2]
MODULES = sorted([*(ROOT / "python").rglob("*.py"), *(ROOT / "nvmf_vfio").rglob("*.py")])
CLI = sorted(path.stem for path in (ROOT / "python/nvmuser/cli").glob("*.py") if not path.stem.startswith("bench"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {
    "grpcio": "grpc",
    "prometheus-client": "prometheus_client",
    "protobuf": "google",
    "pyyaml": "yaml",
    "qemu.qmp": "qemu",
    "typing-extensions": "typing_extensions",
}
OURS = {"nvmuser", "nvmf_vfio", "nvmuser_vfu", "nvmuser_nvme"}


def names(requirements: list[str]) -> set[str]:
    """The packages of requirements, as they are imported."""
    found = {re.split(r"[<>=!~ \[]", requirement)[0] for requirement in requirements}
    return {IMPORTED_AS.get(name, name) for name in found}


def third_party(path: Path) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.split(".")[0])
    return roots - set(sys.stdlib_module_names) - OURS


def test_what_is_imported_is_declared() -> None:
    declared = names(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        declared |= names(extra)
    imported = set[str]().union(*map(third_party, MODULES))
    assert imported <= declared


ROOTS = {extra: {name.split(".")[0] for name in brought} for extra, brought in EXTRAS.items()}

SHARED = {"protobuf": {"google"}}
"""Module that packages of several extras share → what it may import."""


@pytest.mark.parametrize("extra", EXTRAS)
def test_only_its_package_imports_an_extra(extra: str) -> None:
    assert names(PROJECT["optional-dependencies"][extra]) == ROOTS[extra]
    for path in MODULES:
        (owner,) = path.relative_to(ROOT).with_suffix("").parts[2:3] or ("",)
        # Two extras may bring the same.
        assert third_party(path) & ROOTS[extra] <= ROOTS.get(owner, SHARED.get(owner, set())), path
    needed = names(PROJECT["dependencies"])
    assert not needed & ROOTS[extra]


WITHOUT = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: None if name in {extras} else find(name, *rest)
"""


def run_without(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter in which the packages of the extras cannot be imported."""
    command = [sys.executable, "-c", WITHOUT.format(extras=set().union(*ROOTS.values())) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_rest_of_the_command_line_does_without() -> None:
    ended = run_without("".join(f"import nvmuser.cli.{name}\n" for name in CLI))
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("arguments", ["bench demo", "bench compare --help", "bench report x"])
def test_bench_names_the_command_that_installs_it(arguments: str) -> None:
    ended = run_without("from nvmuser.cli.main import main; main()", *arguments.split())
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "needs jinja2, matplotlib, numpy: `pip install 'nvmuser[bench]'`" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_api_names_the_command_that_installs_it() -> None:
    ended = run_without("from nvmuser.cli.main import main; main()", "api", "openapi")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "`pip install 'nvmuser[api]'`" in ended.stderr


def test_help_works_without() -> None:
    ended = run_without("from nvmuser.cli.main import main; main()", "bench", "--help")
    assert ended.returncode == 0
    assert "compare" in ended.stdout
