"""Parts of nvmuser that a host which only serves volumes does without: extras in pyproject.toml."""

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
}
"""Extra → the packages that it brings, by the name under which they are imported."""


def require_extra(extra: str, user: str) -> None:
    """:raises SetupError: a package of the extra is not installed; the message says how to get it."""
    missing = [name for name in EXTRAS[extra] if not _is_installed(name)]
    if missing:
        way_out = f"the package nvmuser-{extra}" if packaged_dir() else f"`pip install 'nvmuser[{extra}]'`"
        raise SetupError(
            f"{user} needs {', '.join(missing)}: {way_out} installs what is missing (`make setup` in a checkout)"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what it is a part of
        return False
