"""`nvmuser bench …`: measuring. The commands on comparisons are in `bench_compare`, loaded when they are
used.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console

from nvmuser.cli.groups import LazyGroup
from nvmuser.cli.guest_options import device_directories
from nvmuser.cli.options import json_document
from nvmuser.cli.progress import Progress, run
from nvmuser.errors import GuestError, UsageError
from nvmuser.extras import require_extra
from nvmuser.paths import StateDir

if TYPE_CHECKING:
    from nvmuser.bench.measure.fio import Job, Workload
    from nvmuser.bench.report.result import Result
    from nvmuser.bench.scenarios.demo import Disks

T = TypeVar("T")
_WIDTH = 100

_COMMANDS = {
    "compare": ("bench_compare", "Compare with the other transports of a guest's disk."),
    "demo": ("bench", "Start everything, measure, verify, and leave a report."),
    "diff": ("bench_compare", "Compare two comparisons."),
    "encryption": ("bench_encryption", "What encryption at rest costs."),
    "fleet": ("bench_fleet", "What it takes to declare things for many hosts."),
    "guest": ("bench", "Run fio in a guest."),
    "host": ("bench_host", "An NVMe host and a PCI device in Python."),
    "idle": ("bench_idle", "What idle controllers cost."),
    "migrate": ("bench_migrate", "How long a guest stalls when it moves to another host."),
    "neighbour": ("bench_neighbour", "What a guest notices of the others on its core."),
    "plug": ("bench_plug", "How long a guest waits for a disk."),
    "provision": ("bench_provision", "How long it takes to provision."),
    "move": ("bench_move", "How long a guest stalls when its controller moves to another target."),
    "recovery": ("bench_recovery", "How long a guest stalls when its target dies."),
    "report": ("bench_compare", "Print a comparison again."),
    "api": ("bench_api", "How fast the API is: changes, reads, scrapes, watchers."),
    "scale": ("bench_scale", "How cost grows with the number of controllers."),
    "shared": ("bench_shared", "Volumes that several hosts reach, and one writes."),
    "tune": ("bench_tune", "What each setting of the guest and of QEMU gains."),
}


class _Group(LazyGroup):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            require_extra("bench", "`nvmuser bench`")
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Group, lazy=_COMMANDS)
def bench() -> None:
    """Measure from inside a guest, and compare.

    \b
    Examples:
      nvmuser bench demo --output out/demo
      nvmuser bench guest --controller vm1 --rw randread --iodepth 32
      nvmuser bench guest --via libvfio,native --rounds 9 --json
      nvmuser bench compare --output bench/latest
    """


def _show(result: Result, output: Path, as_json: bool) -> None:
    """Print a result. Its data was wrong: that is on stderr too, and in the exit status."""
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        from nvmuser.bench.report import table

        # A pipe has no width of its own.
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(table.result(result))
        click.echo(f"\nreport: {output / 'report.html'}\nresult: {output / 'result.json'}")
    if result.wrong:
        click.echo(f"nvmuser: {'; '.join(result.wrong)}; see {output / 'report.html'}", err=True)
        raise click.exceptions.Exit(GuestError.exit_status)


_OUTPUT = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--output", type=_OUTPUT, default=Path("out/demo"), show_default=True, help="Where results go.")
@click.option("--direct", is_flag=True, help="Without the endpoint: the guest would not survive its target.")
@json_document("result.json")
def demo(output: Path, direct: bool, as_json: bool) -> None:
    """Start a target, make a volume, boot a guest, measure and verify inside it; leave a report and no
    process.
    """
    from nvmuser.bench.scenarios import demo as chain

    with Progress() as progress:
        result = run(chain.demo(output, progress, direct=direct))
        progress.step("done")
    _show(result, output, as_json)


def _transports(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(value.split(",")))
    if unknown := set(chosen) - {"native", "libvfio"}:
        raise UsageError(f"--via {sorted(unknown)[0]!r}: native, libvfio, or both with a comma between")
    return chosen


@click.command()
@click.option("--controller", "controllers", multiple=True, metavar="NAME", help="Measure this one. May be repeated.")
@click.option("--job", type=click.Path(path_type=Path), help="A fio job file; its own words win over our defaults.")
@click.option("--rw", default="randread", show_default=True, help="read, write, randread, randwrite, randrw, rw …")
@click.option("--bs", default="4k", show_default=True, help="Block size.")
@click.option("--iodepth", default=32, show_default=True)
@click.option("--ioengine", default="io_uring", show_default=True, help="io_uring, libaio, psync, sync.")
@click.option("--numjobs", default=1, show_default=True, help="Threads, each with the depth.")
@click.option("--runtime", default=10.0, show_default=True, metavar="SECONDS")
@click.option("--size", metavar="SIZE", help="Only the first so many bytes; with --verify, how much is written.")
@click.option("--verify", metavar="SUM", help="Write, read back and check, such as crc32c; ends by size, not by time.")
@click.option("--poll", is_flag=True, help="Polled queues instead of interrupts (io_uring).")
@click.option("--cpus", default=1, show_default=True, help="Of the guest.")
@click.option("--memory", default="512M", show_default=True, help="Of the guest.")
@click.option("--direct", is_flag=True, help="Connect the guest to the target, without the endpoint between.")
@click.option(
    "--via",
    default="native",
    show_default=True,
    callback=_transports,
    help="How QEMU reaches the controllers: native, libvfio, or libvfio,native to compare them.",
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Of each, when two are compared.")
@click.option("--overwrite", is_flag=True, help="Let writing jobs write over a file system.")
@json_document("result.json")
@click.option("--output", type=_OUTPUT, default=Path("out/bench"), show_default=True, help="Where results go.")
@click.pass_obj
def guest(
    state: StateDir,
    /,
    controllers: tuple[str, ...],
    job: Path | None,
    output: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Run fio in a guest, on controllers of yours or on a disk made for it.

    Without --controller everything is private and temporary: a target, a volume of 256 MiB, a guest. With two
    transports after --via: two guests, measured in turns; `ratio` in the JSON is the IOPS of libvfio over native, with
    its interval in `ratio_ci`.
    """
    from nvmuser.bench.measure import fio, job_check

    if len(options["via"]) > 1:
        _compare_transports(controllers, job, output, as_json, options)
        return
    work = fio.Workload.from_file(job) if job else _job(options).workload()
    if job:
        job_check.check(work, job)
    with Progress() as progress:
        result = run(_measure(state, controllers, work, output, progress, options))
        progress.step("done")
    _show(result, output, as_json)


def _compare_transports(
    controllers: tuple[str, ...], file: Path | None, output: Path, as_json: bool, options: dict[str, Any]
) -> None:
    from nvmuser.cli import bench_transports

    if controllers or file or options["direct"] or options["verify"]:
        taken = "no --controller, --job, --direct, --verify"
        raise UsageError(f"two transports are compared on disks of their own: {taken}")
    bench_transports.compare(_job(options), output, rounds=options["rounds"], cpus=options["cpus"], as_json=as_json)


def _job(options: dict[str, Any]) -> Job:
    from nvmuser.bench.measure import fio

    verify = options["verify"]
    return fio.Job(
        name=options["rw"],
        rw="randwrite" if verify and options["rw"] == "randread" else options["rw"],
        bs=options["bs"],
        iodepth=options["iodepth"],
        ioengine=options["ioengine"],
        numjobs=options["numjobs"],
        runtime=None if verify else options["runtime"],
        ramp=0.0 if verify else 1.0,
        size=None if verify else options["size"],
        io_size=options["size"] or "64M" if verify else None,
        verify=verify,
        poll=options["poll"],
    )


async def _measure(
    state: StateDir,
    controllers: tuple[str, ...],
    work: Workload,
    output: Path,
    progress: Progress,
    options: dict[str, Any],
) -> Result:
    from nvmuser.bench.scenarios import demo as chain
    from nvmuser.hostfs.hugepages import PAGE
    from nvmuser.model.sizes import parse_size, round_up

    direct, cpus, memory = options["direct"], options["cpus"], round_up(parse_size(options["memory"]), PAGE)
    libvfio = options["via"] == ("libvfio",)
    append = "nvme.poll_queues=1" if options["poll"] else ""
    if not controllers:
        async with chain.own_disk(output, progress, direct=direct, libvfio=libvfio) as disks:
            return await chain.measure(disks, [work], output, progress, cpus=cpus, memory=memory, append=append)
    disks = await _existing(state, controllers, direct, libvfio)
    return await chain.measure(
        disks, [work], output, progress, cpus=cpus, memory=memory, append=append, overwrite=options["overwrite"]
    )


async def _existing(state: StateDir, controllers: tuple[str, ...], direct: bool, libvfio: bool) -> Disks:
    from nvmuser.bench.measure.deployment import processes
    from nvmuser.bench.scenarios.demo import Disks
    from nvmuser.supervisor import control, occupancy

    if len(set(controllers)) != len(controllers):
        raise UsageError("the same controller is named twice")
    await occupancy.check_free(state, controllers, direct=direct)
    async with control.connected(state) as supervisor:
        found = await processes(supervisor, direct=direct)
    sockets = tuple(state.socket(name, direct=direct) for name in controllers)
    directories = device_directories(state, controllers, direct=direct) if libvfio else None
    return Disks(sockets, controllers, found, directories)
