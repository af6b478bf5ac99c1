"""Imports point one way (cli → nvmuser.* → nvmf_vfio); rpc, model, store and reconcile know nothing of processes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted([*(ROOT / "python/nvmuser").rglob("*.py"), *(ROOT / "nvmf_vfio").rglob("*.py")])
DEVICE_KNOWS = {"nvmuser.pci", "nvmuser.errors", "nvmuser.hostfs.sockets", "nvmuser.toolchain.bindings"}
PROCESSES = {"subprocess", "multiprocessing", "nvmuser.supervisor", "nvmuser.guest", "nvmuser.toolchain"}


def imports(path: Path) -> set[str]:
    """What a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def within(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    names = imports(path)
    place = path.relative_to(ROOT).parts
    if place[0] == "nvmf_vfio":
        assert not within(names, "nvmuser")
    elif place[2] != "cli":
        assert not within(names, "nvmuser.cli")
        assert not within(names, "click"), "only the CLI talks to people"
    if place[2:3] == ("pci",):
        known = {name for package in DEVICE_KNOWS for name in within(names, package)}
        assert within(names, "nvmuser") <= known | {"nvmuser.toolchain", "nvmuser.pci"}
        assert place[3] == "raw.py" or not within(names, "nvmuser.toolchain"), "the cffi tier is one module"
    if place[2:3] in (("rpc",), ("model",), ("store",), ("reconcile",)):
        assert not {name for package in PROCESSES for name in within(names, package)}
