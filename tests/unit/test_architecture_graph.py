"""Imports between modules have no circle, packages know only those below them, and nobody uses a private member."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (("nvmuser", ROOT / "python"), ("nvmf_vfio", ROOT))
KNOWS: dict[str, set[str]] = {
    "nvmf_vfio": set(),
    "collector": set(),
    "errors": set(),
    "paths": set(),
    "extras": {"errors", "paths"},
    "protobuf": set(),
    "grpc_server": {"errors", "hostfs"},
    "model": {"errors", "paths"},
    "hostfs": {"errors", "model", "nvmf_vfio", "paths"},
    "rpc": {"errors", "hostfs", "paths"},
    "store": {"errors", "hostfs", "model"},
    "ceph": {"errors", "model"},
    "reconcile": {"ceph", "errors", "hostfs", "model", "paths", "rpc", "store"},
    "toolchain": {"errors", "hostfs", "nvmf_vfio", "paths"},
    "pci": {"errors", "hostfs", "toolchain"},
    "client": {"errors"},
    "fleet": {"ceph", "errors", "hostfs", "model", "paths", "protobuf", "reconcile", "store"},
    "supervisor": {"client", "collector", "errors", "extras", "fleet", "hostfs", "model", "nvmf_vfio", "paths",
                   "reconcile", "rpc", "store", "toolchain"},
    "initiator": {"errors", "hostfs", "supervisor", "toolchain"},
    "guest": {"errors", "fleet", "hostfs", "model", "paths", "store", "supervisor", "toolchain"},
    "doctor": {"ceph", "errors", "hostfs", "model", "paths", "reconcile", "store", "supervisor", "toolchain"},
    "bench": {
        "ceph", "collector", "errors", "fleet", "guest", "hostfs", "initiator", "model", "nvmf_vfio", "paths", "pci",
        "reconcile", "rpc", "store", "supervisor", "toolchain",
    },
    "api": {"errors", "fleet", "guest", "hostfs", "model", "paths", "reconcile", "rpc", "store", "supervisor"},
    "sma": {"api", "errors", "grpc_server", "guest", "hostfs", "model", "paths", "protobuf", "reconcile", "supervisor"},
    "csi": {"client", "errors", "grpc_server", "hostfs", "protobuf"},
    "top": {"errors", "model", "paths", "reconcile", "supervisor"},
    "images": {"errors", "initiator", "model", "paths", "supervisor", "toolchain"},
    "cli": {"api", "bench", "ceph", "client", "collector", "csi", "doctor", "errors", "extras", "fleet", "guest",
            "hostfs", "images", "model", "paths", "reconcile", "rpc", "sma", "store", "supervisor", "toolchain", "top"},
}  # fmt: skip
"""Package or module of nvmuser → what it may import."""


def sources() -> Iterator[tuple[str, Path]]:
    for package, root in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(sources())


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of every import that is executed: `TYPE_CHECKING` is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        else:
            yield from imported(node)


def graph() -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        found = set()
        for module, member in imported(ast.parse(path.read_text())):
            inner = f"{module}.{member}"
            found.add(inner if inner in MODULES else module)
        edges[name] = {other for other in found if other in MODULES and other != name}
    return edges


def package(module: str) -> str:
    """The name in `KNOWS`; empty for the package `nvmuser` itself, which has only its version."""
    parts = module.split(".")
    return parts[0] if parts[0] == "nvmf_vfio" else ".".join(parts[1:2])


def test_modules_import_each_other_in_no_circle() -> None:
    list(graphlib.TopologicalSorter(graph()).static_order())  # raises CycleError, which names them


def test_packages_know_only_those_below() -> None:
    list(graphlib.TopologicalSorter(KNOWS).static_order())
    for module, others in graph().items():
        known = {package(other) for other in others} - {package(module), ""}
        if package(module):
            assert known <= KNOWS[package(module)], module


def test_nobody_imports_a_private_member() -> None:
    for name, path in MODULES.items():
        for module, member in imported(ast.parse(path.read_text())):
            private = any(part.startswith("_") and not part.startswith("__") for part in (*module.split("."), member))
            assert not private, f"{name}: {module}.{member}"
