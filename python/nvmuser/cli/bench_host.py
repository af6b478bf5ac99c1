"""`nvmuser bench host`: clients on the host, without a guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import click
from click.core import ParameterSource

from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.scenarios import host, host_peers
from nvmuser.bench.scenarios.host import HostResult
from nvmuser.bench.scenarios.host_peers import PeersResult
from nvmuser.bench.scenarios.host_programs import ASYNC_DEPTH, PATTERNS
from nvmuser.cli.options import json_document
from nvmuser.cli.progress import Progress, run
from nvmuser.toolchain import find_spdk


@click.command("host")
@click.option("--rw", type=click.Choice(PATTERNS), default="randread", show_default=True)
@click.option("--depth", type=click.IntRange(1, 128), default=32, show_default=True)
@click.option(
    "--size", type=click.IntRange(4096, 1 << 20), default=4096, show_default=True, help="Bytes; blocks of 4096."
)
@click.option("--seconds", type=click.IntRange(1, 600), default=2, show_default=True, help="Of each run.")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, writable=True),
    help="Measure on this file, which writes overwrite. Without: on 64 MiB of memory.",
)
@click.option(
    "--peers",
    "peer",
    type=click.Choice(host_peers.PEERS),
    help="Another kind of server instead, beside ours: reads and writes at depths 1, 32 and 128 (or --rw, --depth).",
)
@json_document("perf_ratio, async_reads_per_s, gpio_ratio, …; with --peers device_ratios.JOB, …")
@click.pass_context
def host_command(
    context: click.Context, rw: str, depth: int, size: int, seconds: int, rounds: int, file: Path | None,
    peer: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Reach a volume over vfio-user without a guest: spdk_nvme_perf, SPDK's fio plug-in, nvmuser.initiator.

    Beside bdevperf, which has the same volume without a transport. Then a device in Python beside the same in C.
    One CPU for the target, one for its client; everything is private and temporary.

    \b
    Examples:
      nvmuser bench host
      nvmuser bench host --rw randwrite --depth 1 --rounds 3 --json
      nvmuser bench host --file /srv/vm/disk.raw
      nvmuser bench host --peers vhost-user-blk --json
    """
    if size % 4096:
        raise click.BadParameter(f"{size} is no multiple of 4096", param_hint="--size")
    result: HostResult | PeersResult
    with scratch("nvmuser-") as root, Progress() as progress:
        common = _Common(rounds=rounds, size=size, seconds=seconds, file=file, progress=progress)
        if peer is None:
            result = run(host.measure(root, find_spdk(), pattern=rw, depth=depth, **common))
        else:
            patterns = (rw,) if _given(context, "rw") else host_peers.PATTERNS
            depths = (depth,) if _given(context, "depth") else host_peers.DEPTHS
            result = run(host_peers.measure(root, find_spdk(), patterns=patterns, depths=depths, **common))
        progress.step("done")
    text = _peers_text(result) if isinstance(result, PeersResult) else _text(result)
    click.echo(json.dumps(result.to_json(), indent=2) if as_json else text)


class _Common(TypedDict):
    rounds: int
    size: int
    seconds: int
    file: Path | None
    progress: Progress


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _peers_text(result: PeersResult) -> str:
    found = result.to_json()
    lines = [
        f"{result.size} bytes on {result.volume}, one core for the server; medians of the rounds",
        f"{'':18}{'nvmuser':>20}{host_peers.VHOST:>24}{'ratio':>9}{'range':>14}{'CPU':>7}",
    ]
    for job in result.runs:
        cells = [
            f"{result.median(job, name, lambda run: run.iops) / 1000:.0f}k "
            f"({result.median(job, name, lambda run: run.us_per_io):.2f} µs)"
            for name in (host_peers.OURS, host_peers.VHOST)
        ]
        low, high = found["device_ratios_ci"][job]
        lines.append(
            f"{job:18}{cells[0]:>20}{cells[1]:>24}{found['device_ratios'][job]:9.2f}{f'{low:.2f}-{high:.2f}':>14}"
            f"{found['device_cpu_ratios'][job]:7.2f}"
        )
    lines.append("In parentheses for how long the core was busy, for each I/O; CPU: I/Os a busy second, ratio.")
    return "\n".join(lines + _noise(result.noise))


def _text(result: HostResult) -> str:
    found, work = result.to_json(), result.workload
    titles = {
        "bdevperf": "bdevperf, no transport",
        "spdk_nvme_perf": "spdk_nvme_perf",
        "nvmuser": "nvmuser.initiator, its loop in C",
        "fio": "SPDK's fio plug-in",
        "async": f"nvmuser.initiator, awaited reads (depth {ASYNC_DEPTH})",
    }
    lines = [f"{work.pattern}, {work.size} bytes, depth {work.depth}, on {result.volume}; IOPS, one value a round"]
    for name, title in titles.items():
        lines.append(f"  {title:42}" + "".join(f"{value / 1000:8.0f}k" for value in result.iops[name]))
    lines += [
        f"vfio-user / no transport                    {found['transport_ratio']:8.2f}",
        f"nvmuser.initiator / spdk_nvme_perf          {found['perf_ratio']:8.2f}",
        f"awaited reads a second                      {found['async_reads_per_s']:8.0f}",
        f"a device's register in Python / in C        {found['gpio_ratio']:8.2f}",
    ]
    return "\n".join(lines + _noise(result.noise))


def _noise(noise: float) -> list[str]:
    if noise <= 0.05:
        return []
    return [f"others took {noise:.0%} of this machine's time: measure again when it is quiet"]
