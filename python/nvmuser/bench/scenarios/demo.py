"""The whole chain on a deployment of its own: target, volume, controller, guest, fio inside, verified.

Also runs jobs in a guest on controllers that exist already (`bench guest`). Owns the guest that it boots, and
for the demo the deployment; both are gone when it ends. Prints nothing: it reports its progress to the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from nvmuser.bench.measure import environment, runner, versions
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.disks import fill, output_directory
from nvmuser.bench.measure.fio import Job, Workload
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.measure.scratch import scratch
from nvmuser.bench.report import page
from nvmuser.bench.report.result import JobResult, Result
from nvmuser.errors import UsageError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.toolchain import accelerator, find_appliance, find_qemu, find_spdk

SIZE = 256 << 20
MEMORY = 512 << 20


@dataclass(frozen=True)
class Disks:
    """What a guest is given: sockets, how they are called on the report, host processes to charge."""

    sockets: tuple[Path, ...]
    names: tuple[str, ...]
    processes: Mapping[str, Sequence[int]]
    directories: tuple[Path, ...] | None = None
    """With libvfio: the device directories that stand for the sockets."""


def demo_jobs(runtime: float = 5.0) -> list[Workload]:
    """Random reads, random writes, and writes that are read back and checked."""
    common = {"iodepth": 32, "ramp": 1.0}
    return [
        Job("randread", "randread", runtime=runtime, **common).workload(),  # type: ignore[arg-type]
        Job("randwrite", "randwrite", runtime=runtime, **common).workload(),  # type: ignore[arg-type]
        Job("verify", "randwrite", iodepth=32, size="256M", io_size="32M", verify="crc32c").workload(),
    ]


async def measure(
    disks: Disks,
    workloads: Sequence[Workload],
    output: Path,
    progress: Progress,
    *,
    cpus: int = 1,
    memory: int = MEMORY,
    append: str = "",
    overwrite: bool = True,
) -> Result:
    """Boot a guest with the disks, run every workload, and write result.json, report.html and fio's own
    files.

    :param append: for the guest kernel's command line.
    :param overwrite: write also where there is a file system or the like.
    :raises GuestError: the guest does not boot, or fio cannot run a job. Wrong blocks are no error here, but
    in the
        result (`Result.wrong`).
    """
    output_directory(output)
    progress.step("measuring background noise")
    ours = [pid for pids in disks.processes.values() for pid in pids]
    before = await asyncio.to_thread(environment.spin, ours)
    machine = environment.look()
    spec = GuestSpec(cpus=cpus, memory=memory, sockets=disks.sockets, directories=disks.directories, append=append)
    async with _guest(spec, progress) as guest:
        devices = await runner.nvme_devices(guest, len(disks.sockets))
        if not overwrite and any(workload.writes for workload in workloads):
            await refuse_foreign_data(guest, devices)
        found = await versions.look(guest)
        processes = {"qemu": [guest.process.pid], **disks.processes}
        jobs = await _run_all(guest, workloads, devices, processes, output, progress)
    machine = replace(machine, noise_before=before, noise_after=await asyncio.to_thread(environment.spin, ours))
    about = {"cpus": cpus, "memory_bytes": memory, "disks": list(disks.names)}
    return _written(_result(found, machine, about, jobs), output)


def _result(
    found: dict[str, str | None], machine: environment.Environment, about: dict[str, object], jobs: list[JobResult]
) -> Result:
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        accelerator=accelerator(),
        versions=found,
        environment=machine.to_json(),
        guest=about,
        jobs=jobs,
    )


def _written(result: Result, output: Path) -> Result:
    result.write(output / "result.json")
    (output / "report.html").write_text(page.html(result), encoding="utf-8")
    return result


@contextlib.asynccontextmanager
async def _guest(spec: GuestSpec, progress: Progress) -> AsyncIterator[Guest]:
    progress.step("booting the guest")
    with scratch("nvmuser-guest-") as directory:
        async with launch(spec, directory / "vm") as guest:
            yield guest


async def _run_all(
    guest: Guest,
    workloads: Sequence[Workload],
    devices: Sequence[str],
    processes: Mapping[str, Sequence[int]],
    output: Path,
    progress: Progress,
) -> list[JobResult]:
    jobs: list[JobResult] = []
    for workload in workloads:
        progress.step(f"fio: {workload.name}")
        done = await runner.run(guest, workload, devices, processes=processes, on_estimate=progress.estimate)
        done.keep(output / "fio" / workload.name)
        jobs += done.jobs
    return jobs


async def refuse_foreign_data(guest: runner.Shell, devices: Sequence[str]) -> None:
    """:raises UsageError: a device has a file system, a partition table or the like on it."""
    for device in devices:
        # 2 is "nothing found"; blkid -p looks at the device itself, not into a cache.
        found = await guest.run(f"blkid -p -o value -s TYPE -s PTTYPE {device}", timeout=60)
        if kind := found.stdout.decode(errors="replace").split():
            raise UsageError(f"{device} in the guest holds data ({kind[0]}): pass --overwrite to write over it")


@contextlib.asynccontextmanager
async def own_disk(
    output: Path, progress: Progress, size: int = SIZE, *, direct: bool = False, libvfio: bool = False
) -> AsyncIterator[Disks]:
    """A disk on a deployment of its own: every block written, and gone afterwards.

    The volume's file is in `output`, a real file system as a rule; sockets need a short path and are in /tmp.
    """
    # Report what is missing before anything is made.
    find_spdk(), find_qemu(), find_appliance()
    output_directory(output)
    files = tempfile.TemporaryDirectory(prefix="disk-", dir=output)
    with files, scratch("nvmuser-bench-") as directory:
        file = Path(files.name) / "demo"
        progress.step("writing the volume's file")
        await asyncio.to_thread(fill, file, size)
        progress.step("starting the target")
        async with Deployment.start(directory / "state") as deployment:
            progress.step("creating the volume and the controller")
            socket = await deployment.disk("demo", file, direct=direct)
            processes = await deployment.processes(direct=direct)
            transport = ("direct" if direct else "through the endpoint") + (", libvfio" if libvfio else "")
            directories = (deployment.device("demo", direct=direct),) if libvfio else None
            yield Disks((socket,), (f"demo (file, {size >> 20} MiB, {transport})",), processes, directories)


async def demo(output: Path, progress: Progress, *, direct: bool = False) -> Result:
    """`make demo`: the result shows whether a block was wrong (`Result.wrong`)."""
    async with own_disk(output, progress, direct=direct) as disks:
        return await measure(disks, demo_jobs(), output, progress)
