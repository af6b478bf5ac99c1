"""Parts of nvmuser that a host which only serves volumes does without: extras in pyproject.toml.

Owns what each brings, and the command that installs it: pip's, or apt's where Debian packages have installed nvmuser.
"""

from __future__ import annotations

import importlib.util

from nvmuser.errors import SetupError
from nvmuser.paths import packaged_dir

EXTRAS: dict[str, tuple[str, ...]] = {
    "api": ("prometheus_client", "starlette", "uvicorn"),
    "client": ("httpx",),
    "top": ("textual",),
    "bench": ("jinja2", "matplotlib", "numpy"),
    "fleet": ("grpc", "google.protobuf"),
    "sma": ("grpc", "google.protobuf"),
    "csi": ("grpc", "google.protobuf", "httpx"),
}
"""Extra → the packages that it brings, by the name under which they are imported."""
PACKAGES: dict[str, str] = {
    "api": "nvmuser-api",
    "client": "python3-httpx",
    "top": "python3-textual",
    "bench": "nvmuser-bench",
    "fleet": "python3-grpcio python3-protobuf",
    "sma": "python3-grpcio python3-protobuf",
    "csi": "python3-grpcio python3-protobuf python3-httpx",
}
"""Extra → the Debian packages that bring the same."""
NEEDS_DEBIAN_13 = ("api", "client", "top", "csi")
"""Extras of which Debian 12 has versions that are too old."""


def how_to_install(extra: str) -> str:
    """The command that installs what an extra brings, in backticks."""
    if not packaged_dir():
        return f"`pip install 'nvmuser[{extra}]'`"
    return f"`apt install {PACKAGES[extra]}`" + (" (of Debian 13)" if extra in NEEDS_DEBIAN_13 else "")


def require_extra(extra: str, user: str) -> None:
    """:raises SetupError: a package of the extra is not installed; the message says how to get it."""
    if missing := [name for name in EXTRAS[extra] if not _is_installed(name)]:
        checkout = "" if packaged_dir() else " (`make setup` in a checkout)"
        raise SetupError(
            f"{user} needs {', '.join(missing)}: {how_to_install(extra)} installs what is missing{checkout}"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what it is a part of
        return False
