"""Options that several commands have, each defined once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nvmuser.errors import UsageError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def json_document(contents: str) -> Decorator:
    """`--json` of a command whose document has these contents."""
    return click.option(
        "--json", "as_json", is_flag=True, help=f"Print JSON: {contents}. An error too is one JSON object."
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON. An error too is one JSON object.")
"""`--json`; `nvmuser.cli.failure` prints a failure of such a command as JSON."""

force_option = click.option("--force", is_flag=True, help="Also when a guest that runs loses what it uses.")
"""`--force` of what takes something away."""

REPEATABLE = "May be repeated."
"""The last words of the help of each option that may be given several times."""


def read_token(file: Path) -> str:
    """The token of `--token-file`.

    :raises UsageError: it cannot be read, or is none.
    """
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"--token-file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--token-file {file}: no token") from error
