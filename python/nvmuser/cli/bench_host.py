"""`nvmuser bench host`: clients on the host, without a guest."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.scenarios.host import HostResult, measure
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
@json_document("perf_ratio, async_reads_per_s, gpio_ratio, …")
def host_command(rw: str, depth: int, size: int, seconds: int, rounds: int, file: Path | None, as_json: bool) -> None:
    """Reach a volume over vfio-user without a guest: spdk_nvme_perf, SPDK's fio plug-in, nvmuser.initiator.

    Beside bdevperf, which has the same volume without a transport. Then a device in Python beside the same in C.
    One CPU for the target, one for its client; everything is private and temporary.

    \b
    Examples:
      nvmuser bench host
      nvmuser bench host --rw randwrite --depth 1 --rounds 3 --json
      nvmuser bench host --file /srv/vm/disk.raw
    """
    if size % 4096:
        raise click.BadParameter(f"{size} is no multiple of 4096", param_hint="--size")
    with scratch("nvmuser-") as root, Progress() as progress:
        result = run(
            measure(
                root,
                find_spdk(),
                rounds=rounds,
                pattern=rw,
                depth=depth,
                size=size,
                seconds=seconds,
                file=file,
                progress=progress,
            )
        )
        progress.step("done")
    click.echo(json.dumps(result.to_json(), indent=2) if as_json else _text(result))


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
    if result.noise > 0.05:
        lines.append(f"others took {result.noise:.0%} of this machine's time: measure again when it is quiet")
    return "\n".join(lines)
