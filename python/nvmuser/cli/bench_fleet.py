"""`nvmuser bench fleet`: what it takes to declare things for many hosts."""

from __future__ import annotations

import json
from typing import Any

import click

from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.report.result import null_for_nan
from nvmuser.cli.options import json_document
from nvmuser.cli.progress import Progress, run
from nvmuser.errors import UsageError
from nvmuser.extras import require_extra


def _counts(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    words = [word for word in value.split(",") if word]
    if not all(word.isdigit() and int(word) for word in words):
        raise UsageError(f"--simulated {value}: numbers with commas between them, such as 100,1000")
    return tuple(map(int, words))


@click.command()
@click.option("--hosts", type=click.IntRange(0, 16), default=3, show_default=True, help="With real targets.")
@click.option("--controllers", type=click.IntRange(1), default=1000, show_default=True, help="Of each of them.")
@click.option("--changes", type=click.IntRange(1), default=100, show_default=True, help="Single ones.")
@click.option(
    "--simulated",
    default="10,100,300,1000",
    show_default=True,
    callback=_counts,
    metavar="N,N,…",
    help="Hosts without SPDK.",
)
@click.option("--outage", type=click.FloatRange(0), default=10.0, show_default=True, help="Seconds without etcd.")
@json_document(
    "apply_s, reapply_s, change_p50_s, change_p99_s, object_bytes, evict_s, outage.longest_io_s, "
    "outage.longest_io_with_s, simulated.<hosts>.{join_s,apply_s,change_p50_s,change_p99_s}"
)
def fleet(as_json: bool, **options: Any) -> None:
    """Measure a fleet on this machine: an etcd, hosts with real targets, and simulated ones.

    \b
    apply:     null volumes and controllers on all hosts, until each has its socket; then the same again.
    changes:   one controller more, until its socket is served; on simulated hosts: until the host says so.
    evict:     a host is killed, all of it; from the command until another one serves what it had on a remote.
    outage:    the longest I/O of clients that write, one on each host, while etcd is killed.
    simulated: agents without SPDK, in two processes.

    Everything is private and temporary. Needs etcd (`apt-get install etcd-server`).

    \b
    Examples:
      nvmuser bench fleet --json
      nvmuser bench fleet --hosts 0 --simulated 1000
    """
    require_extra("fleet", "`nvmuser bench fleet`")
    from nvmuser.bench.scenarios.fleet import FleetPlan, measure

    with scratch("nvmuser-") as root, Progress() as progress:
        document = null_for_nan(run(measure(root, FleetPlan(**options), progress)))
        progress.step("done")
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    for name, value in document.items():
        if not isinstance(value, dict):
            click.echo(f"{name}: {value:.4g}")
    for name, figures in (("outage", document.get("outage")), *document["simulated"].items()):
        if figures:
            click.echo(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
