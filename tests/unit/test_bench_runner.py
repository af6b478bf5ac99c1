"""The runner, with a shell on the host for a guest: it runs a script in place of fio that writes fio's
files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nvmuser.bench.measure import cpu, fio, runner
from nvmuser.bench.measure.fio_output import Estimate
from nvmuser.errors import GuestError, UsageError
from nvmuser.guest.agent import CommandResult, Output

DATA = Path(__file__).parent / "data" / "fio"


class ShellProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __aiter__(self) -> AsyncIterator[Output]:
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(7):
            yield Output("stdout", chunk)


class ShellGuest:
    """Runs commands in `sh` with a `fio` of the test's own in front of PATH."""

    def __init__(self, bin_directory: Path) -> None:
        self._path = f"{bin_directory}:/usr/bin:/bin"

    async def _start(self, command: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            command,
            stdin=-1,
            stdout=-1,
            stderr=-1,
            env={"PATH": self._path},
            start_new_session=True,
        )

    async def run(
        self,
        command: str,
        *,
        input: bytes = b"",
        timeout: float | None = None,  # noqa: ASYNC109
        check: bool = False,
    ) -> CommandResult:
        process = await self._start(command)
        out, err = await asyncio.wait_for(process.communicate(input), timeout)
        assert process.returncode is not None
        assert not check or process.returncode == 0, err
        return CommandResult(process.returncode, out, err)

    @contextlib.asynccontextmanager
    async def stream(self, command: str) -> AsyncIterator[ShellProcess]:
        process = await self._start(command)
        try:
            yield ShellProcess(process)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShellGuest:
    work = str(tmp_path / "work")
    monkeypatch.setattr(runner, "_SCRIPT", runner._SCRIPT.replace(runner._DIRECTORY, work))
    monkeypatch.setattr(runner, "_DIRECTORY", work)
    (tmp_path / "bin").mkdir()
    return ShellGuest(tmp_path / "bin")


def fake_fio(tmp_path: Path, body: str) -> None:
    program = tmp_path / "bin" / "fio"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


async def test_run_gives_jobs_series_and_files(guest: ShellGuest, tmp_path: Path) -> None:
    fake_fio(
        tmp_path,
        f"cp {DATA}/randread.json fio.json; cp {DATA}/randread_iops.1.log log_iops.1.log; "
        f"cp {DATA}/randread_lat.1.log log_lat.1.log; "
        r"printf 'Jobs: 1 (f=1): [r(1)][50.0%%][r=49.6MiB/s][r=12.7k IOPS][eta 00m:02s]\r\n'",
    )
    seen: list[tuple[str, Estimate]] = []
    workload = fio.Job("randread", "randread", runtime=3).workload()
    done = await runner.run(
        guest, workload, ["/dev/nvme0n1"], on_estimate=lambda name, estimate: seen.append((name, estimate))
    )
    [job] = done.jobs
    assert job.iops > 0
    assert len(job.series.t_s) >= 4
    assert seen == [("randread", Estimate(12700.0, 2.0))]
    done.keep(tmp_path / "kept")
    assert (tmp_path / "kept" / "fio.json").read_text() == (DATA / "randread.json").read_text()
    assert "filename=/dev/nvme0n1" in (tmp_path / "kept" / "job.fio").read_text()
    assert not (tmp_path / "work").exists()


async def test_log_of_the_guests_cpus_begins_with_their_number(guest: ShellGuest, tmp_path: Path) -> None:
    fake_fio(tmp_path, f"cp {DATA}/randread.json fio.json; sleep 0.5")
    done = await runner.run(guest, fio.Job("randread", "randread", runtime=3).workload(), ["/dev/nvme0n1"])
    assert done.files["cpu.log"].startswith(f"cpus {os.cpu_count()}\n".encode())
    assert len(cpu.guest_samples(done.files["cpu.log"].decode())) >= 2


async def test_job_that_fio_refuses_is_told_in_its_words(guest: ShellGuest, tmp_path: Path) -> None:
    fake_fio(tmp_path, "echo 'fio: engine nonsense not loadable' >&2; exit 1")
    workload = fio.Job("broken", "randread", runtime=1).workload()
    with pytest.raises(GuestError, match=r"could not run broken \(status 1\): .*not loadable"):
        await runner.run(guest, workload, ["/dev/nvme0n1"])


async def test_no_device_is_refused(guest: ShellGuest) -> None:
    with pytest.raises(UsageError, match="no device"):
        await runner.run(guest, fio.Job("r", "randread", runtime=1).workload(), [])


async def test_stuck_workload_ends_by_its_limit(guest: ShellGuest, tmp_path: Path) -> None:
    fake_fio(tmp_path, "exec sleep 60")
    workload = fio.Job("stuck", "randread", runtime=1).workload()
    with pytest.raises(GuestError, match=r"stuck did not end within 0\.2 s"):
        await runner.run(guest, workload, ["/dev/nvme0n1"], limit=0.2)
