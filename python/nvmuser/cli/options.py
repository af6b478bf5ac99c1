"""Options that several commands have, each defined once, and JSON on stdout."""

from __future__ import annotations

import json
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document; errors too (docs/cli.md).")


def say(data: Any) -> None:
    """Print a JSON document."""
    click.echo(json.dumps(data, indent=2))
