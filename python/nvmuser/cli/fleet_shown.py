"""What `nvmuser fleet show` and `nvmuser host list` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table

from nvmuser.cli.present import console


def show(found: Mapping[str, Any]) -> None:
    """For people."""
    click.echo(f"fleet {found['fleet']}, etcd {found['etcd']}, revision {found['revision']}")
    table = Table("host", "state", "controllers", "volumes", "labels", "version", box=None)
    for host in found["hosts"]:
        state = "live" if host["live"] else "does not answer"
        state += ", cordoned" if host["cordoned"] else ""
        state += ", no target" if host["live"] and host["pending"] else ""
        labels = " ".join(f"{name}={value}" for name, value in sorted(host["labels"].items()))
        numbers = (str(host["controllers"]), str(host["volumes"]))
        table.add_row(host["name"], state, *numbers, labels or "-", host["version"] or "-")
    console().print(table)
    for host in found["hosts"]:
        for key, text in host["problems"].items():
            click.echo(f"host {host['name']}: {key.replace('/', ' ')}: {text}")
        if host["more_problems"]:
            click.echo(f"host {host['name']}: {host['more_problems']} further problems")
    for text in found["errors"]:
        click.echo(text)
