"""Public definitions say what they are, in which units and from which source; what they raise is written in one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"nvmuser": ROOT / "python", "nvmf_vfio": ROOT}
DOCUMENTED = (
    "nvmf_vfio.protocol", "nvmf_vfio.keeper", "nvmf_vfio.state", "nvmuser.rpc", "nvmuser.pci", "nvmuser.initiator",
)  # fmt: skip
"""Packages in which every public definition has a docstring."""
STYLED = ("nvmf_vfio", "nvmuser")
"""Packages whose docstrings use `:raises Error: when`."""
_FIELD = re.compile(r":(raises?|excepts?|exception|throws?)\b[^:\n]*:?", re.IGNORECASE)
_RAISES = re.compile(r":raises [A-Za-z][\w.]*:$")


def modules(package: str) -> list[Path]:
    directory = SOURCES[package.partition(".")[0]].joinpath(*package.split("."))
    found = sorted(directory.rglob("*.py")) or [directory.with_suffix(".py")]
    assert found[0].exists(), f"no package {package}"
    return found


def sources(packages: tuple[str, ...]) -> list[Path]:
    return sorted({path for package in packages for path in modules(package)})


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: Documented, prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """Classes and functions of a module, with the members of its classes; not what is local to a function."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{prefix}{node.name}.")


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def repeats(node: Documented) -> bool:
    """Whether a decorator says that another definition of this name has the docstring."""
    if isinstance(node, ast.Module):
        return False
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(decorators & {"overload", "setter", "override"})


@pytest.mark.parametrize("path", sources(DOCUMENTED), ids=name_of)
def test_public_definitions_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    public = [(name, node) for name, node in definitions(tree) if is_public(name) and not repeats(node)]
    assert [name for name, node in [("the module", tree), *public] if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", sources(STYLED), ids=name_of)
def test_errors_are_documented_in_one_way(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for name, node in [("the module", tree), *definitions(tree)]:
        for line in (ast.get_docstring(node) or "").splitlines():
            for field in _FIELD.finditer(line):
                assert _RAISES.match(field[0]), f"{name}: {line.strip()}"
                assert line.lstrip().startswith(":raises"), f"{name}: on a line of its own: {line.strip()}"
