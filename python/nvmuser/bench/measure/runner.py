"""Runs fio in a guest that somebody else started, and puts together what it did and what that cost.

Owns the script that runs in the guest and the directory that it works in there (removed again). Knows neither
how the guest was made nor what stands behind its disks; needs only `run` and `stream` of it.
"""

from __future__ import annotations

import asyncio
import io
import shlex
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from nvmuser.bench.measure import cpu, fio, fio_output
from nvmuser.bench.report.result import Cpu, JobResult
from nvmuser.errors import GuestError, UsageError
from nvmuser.guest.agent import CommandResult, Output

_DIRECTORY = "/run/nvmuser-bench"
_SLACK = 120.0
"""Seconds that starting and ending fio, laying out and fetching may take under software emulation."""
_UNKNOWN = 3600.0
"""Seconds for a job file of the user, whose run-time is not known."""
_DEVICE_WAIT = 30
_SAMPLE = 0.2
"""Seconds between two looks at the guest's CPUs: a run of 1 s has some inside."""


class ShellProcess(Protocol):
    """A command that runs; iterated over for its output."""

    def __aiter__(self) -> AsyncIterator[Output]: ...


class Shell(Protocol):
    """The part of `nvmuser.guest.Guest` that is needed here; the unit tests have one made of a shell on the host."""

    async def run(
        self,
        command: str,
        *,
        input: bytes = b"",
        timeout: float | None = None,  # noqa: ASYNC109
        check: bool = False,
    ) -> CommandResult:
        """Run a shell command to its end."""
        ...

    def stream(self, command: str) -> AbstractAsyncContextManager[ShellProcess]:
        """Run a shell command while the block runs, with its output as it comes."""
        ...


OnEstimate = Callable[[str, fio_output.Estimate], None]
"""Called with the workload's name about once a second."""


@dataclass(frozen=True)
class FioRun:
    """One run of fio: its jobs, and every file that it wrote."""

    jobs: list[JobResult]
    files: dict[str, bytes]

    def keep(self, directory: Path) -> None:
        """Write fio's own files (JSON, logs, job file) into a directory, where fio-plot and others read
        them.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


_SCRIPT = f"""
cd {_DIRECTORY} || exit 1
sample() {{ read -r up idle </proc/uptime; read -r cpu </proc/stat; echo "$up $cpu"; }}
echo "cpus $(grep -c '^cpu[0-9]' /proc/stat)" >cpu.log
mkfifo tick && exec 9<>tick && rm tick
if echo | read -t 1 _ 2>/dev/null; then pause() {{ read -t {_SAMPLE} _ <&9; :; }}; else pause() {{ sleep 1; }}; fi
(while sample; do pause; done) >>cpu.log 2>/dev/null </dev/null &
sampler=$!
{shlex.join(fio.command())} 2>{fio.ERRORS} </dev/null
echo $? > status
kill $sampler
sample >> cpu.log
"""
"""CPU log in the background, fio, its status.

The log is made by builtins, so that it costs nothing: each `sleep` is a process, 12 ms of a CPU under emulation.
busybox and bash can wait for a line that never comes instead; dash has no such wait, and looks once a second.
"""


async def run(
    guest: Shell,
    workload: fio.Workload,
    devices: Sequence[str],
    *,
    processes: Mapping[str, Sequence[int]] | None = None,
    on_estimate: OnEstimate | None = None,
    limit: float | None = None,
) -> FioRun:
    """Run one workload on devices of the guest.

    :param processes: host processes to charge, by the name under which they stand in `cpu.host_percent`.
    :param limit: seconds after which the guest counts as stuck; by default from the workload.
    :raises GuestError: fio refused the job or gave no report; its first complaint is in the message.
    """
    if not devices:
        raise UsageError("there is no device to measure in the guest")
    prepared = workload.on(devices)
    if limit is None:
        limit = (workload.seconds or _UNKNOWN) + _SLACK
    async with cpu.ProcessSampler(processes or {}) as sampler:
        await _follow(guest, prepared, limit, on_estimate)
        ended = time.monotonic()
    files = await _fetch(guest)
    report = _report(workload.name, files)
    jobs = [fio_output.job_result(report, index) for index in range(len(report["jobs"]))]
    jobs = _with_series(jobs, files, workload.interval_ms)
    if len(jobs) == 1:
        jobs = [replace(jobs[0], cpu=_cost(jobs[0], sampler.samples, ended, files))]
    return FioRun(jobs, files)


async def _follow(guest: Shell, workload: fio.Workload, limit: float, on_estimate: OnEstimate | None) -> None:
    prepare = f"rm -rf {_DIRECTORY} && mkdir -p {_DIRECTORY} && cat > {_DIRECTORY}/{fio.JOB_FILE}"
    await guest.run(prepare, input=workload.text.encode(), timeout=_SLACK, check=True)
    pending = ""
    try:
        async with asyncio.timeout(limit), guest.stream(_SCRIPT) as process:
            async for piece in process:
                # fio ends its estimates with a carriage return, and once a second with a line end too.
                text = pending + piece.data.decode(errors="replace")
                *lines, pending = text.replace("\r", "\n").split("\n")
                for estimate in filter(None, map(fio_output.parse_estimate, lines)):
                    if on_estimate is not None:
                        on_estimate(workload.name, estimate)
    except TimeoutError:
        raise GuestError(f"{workload.name} did not end within {limit:g} s") from None


async def _fetch(guest: Shell) -> dict[str, bytes]:
    fetch = f"tar -czf - -C {_DIRECTORY} . && rm -rf {_DIRECTORY}"
    result = await guest.run(fetch, timeout=_SLACK, check=True)
    files = {}
    with tarfile.open(fileobj=io.BytesIO(result.stdout), mode="r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                files[Path(member.name).name] = content.read()
    return files


def _text(files: Mapping[str, bytes], name: str) -> str:
    return files.get(name, b"").decode(errors="replace")


def _report(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        return fio_output.load(_text(files, fio.OUTPUT))
    except GuestError:
        complaints = (_text(files, fio.ERRORS) + _text(files, fio.OUTPUT)).strip().splitlines()
        status = _text(files, "status").strip() or "none"
        raise GuestError(f"fio could not run {name} (status {status}): {' '.join(complaints[:2])}") from None


def _with_series(jobs: list[JobResult], files: Mapping[str, bytes], interval_ms: int) -> list[JobResult]:
    """Logs over time: one a job, or all of them one job's threads. Nothing else can be told apart: no
    series.
    """
    iops = [_text(files, name) for name in _logs(files, "iops")]
    lat = [_text(files, name) for name in _logs(files, "lat")]
    if len(jobs) == 1 and len(iops) > 1:
        iops, lat = ["".join(iops)], ["".join(lat)]
    if not len(iops) == len(lat) == len(jobs):
        return jobs
    return [
        replace(job, series=fio_output.series(a, b, interval_ms, job.directions))
        for job, a, b in zip(jobs, iops, lat, strict=True)
    ]


def _logs(files: Mapping[str, bytes], kind: str) -> list[str]:
    prefix, suffix = f"{fio.LOG_PREFIX}_{kind}.", ".log"
    names = [name for name in files if name.startswith(prefix) and name.endswith(suffix)]
    return sorted(names, key=lambda name: int(name[len(prefix) : -len(suffix)] or 0))


def _cost(job: JobResult, host: Mapping[str, list[cpu.Sample]], ended: float, files: Mapping[str, bytes]) -> Cpu:
    """CPU time inside the run, away from both of its ends.

    A verifying job's reading back is in the same run of fio, so its costs are not those of its writes: only
    the percentages are given.
    """
    margin = min(0.25 * job.runtime_s, max(0.5, 0.1 * job.runtime_s))
    start, end = job.runtime_s - margin, margin
    host_rates = {
        name: rate
        for name, samples in host.items()
        if (rate := cpu.used(samples, ended - start, ended - end)) is not None
    }
    guest_log = cpu.guest_samples(_text(files, "cpu.log"))
    last = guest_log[-1][0] if guest_log else 0.0
    guest_rate = cpu.used(guest_log, last - start, last - end)

    def per_io(rate: float | None) -> float | None:
        return None if rate is None or not job.iops or job.verify else rate / job.iops * 1e6

    return Cpu(
        guest_percent=None if guest_rate is None else guest_rate * 100,
        guest_us_per_io=per_io(guest_rate),
        host_percent={name: rate * 100 for name, rate in host_rates.items()},
        host_us_per_io=per_io(sum(host_rates.values()) if host_rates else None),
    )


async def nvme_devices(guest: Shell, count: int) -> list[str]:
    """The guest's NVMe namespaces, once there are so many.

    :raises GuestError: there are fewer after half a minute.
    """
    return await block_devices(guest, "nvme*n*", count)


async def block_devices(guest: Shell, pattern: str, count: int) -> list[str]:
    """Block devices by a shell pattern under /sys/block, once there are so many."""
    # Multipath's hidden paths (nvme0c0n1) have no device file.
    look = f'for d in /sys/block/{pattern}; do [ -b "/dev/${{d##*/}}" ] && echo "/dev/${{d##*/}}"; done'
    wait = (
        f"i=0; while [ $i -lt {_DEVICE_WAIT * 5} ]; do found=$({look}); "
        f'[ "$(echo "$found" | grep -c .)" -ge {count} ] && break; sleep 0.2; i=$((i+1)); done; echo "$found"'
    )
    result = await guest.run(wait, timeout=_DEVICE_WAIT + 30)
    devices = result.stdout.decode().split()
    if len(devices) < count:
        raise GuestError(
            f"the guest has {len(devices)} of {count} disks ({pattern}): a controller without a namespace, "
            "or a driver that did not load; see its console"
        )
    return devices
