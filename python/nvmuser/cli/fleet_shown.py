"""What `nvmuser fleet show` and `nvmuser host list` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from nvmuser.cli.present import console
from nvmuser.fleet.progress import Progress
from nvmuser.fleet.records import Host, Report
from nvmuser.fleet.settings import FleetSettings

if TYPE_CHECKING:
    from nvmuser.fleet.view import View


async def document(settings: FleetSettings, progress: Progress | None = None) -> dict[str, Any]:
    """The fleet as JSON.

    :param progress: of this host, by which it sees that etcd is another than it was.
    :raises FleetError: etcd does not answer, or has no such fleet.
    """
    from nvmuser.fleet.session import session

    async with session(settings) as one:
        view, reports = await one.view(), await one.reports()
        version = await one.client.version()
    conflict = progress.conflict(view.cluster, view.revision) if progress else ""
    unfinished = [] if view.settled else ["a change of many objects is not finished"]
    return {
        "fleet": settings.fleet,
        "etcd": version,
        "revision": view.revision,
        "hosts": [_host(view, host, reports.get(name)) for name, host in sorted(view.hosts.items())],
        "errors": [*filter(None, [conflict]), *unfinished],
    }


def _host(view: View, host: Host, report: Report | None) -> dict[str, Any]:
    mine = [key.kind for key, one in view.objects.items() if one.host == host.name and not one.deleting]
    return {
        "name": host.name,
        "live": host.name in view.live,
        "cordoned": host.cordoned,
        "labels": dict(host.labels),
        "controllers": mine.count("controller"),
        "volumes": mine.count("volume"),
        "pending": bool(report and report.pending),
        "problems": dict(report.problems) if report else {},
        "more_problems": report.more if report else 0,
        "version": report.version if report else "",
    }


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
