"""A fleet and its hosts, as `nvmuser fleet show` and the API show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
