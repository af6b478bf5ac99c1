"""Public definitions of `nvmuser.pci` and `nvmuser.initiator`, which programs use: docstrings, in one style."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "python/nvmuser"
MODULES = sorted(path for package in ("pci", "initiator") for path in (ROOT / package).glob("*.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_definitions_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert [name for name, node in public(tree.body) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_errors_are_documented_in_one_style(path: Path) -> None:
    """Each error in a field of its own."""
    for name, node in public(ast.parse(path.read_text()).body):
        docstring = ast.get_docstring(node) or ""
        for line in docstring.splitlines():
            assert not re.search(r":raise\b|\S.*:raises? ", line), f"{name}: {line}"
