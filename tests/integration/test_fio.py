"""Our fio jobs and people's, on the fio that is built with SPDK."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_bench_runner import ShellGuest

from nvmuser.bench.measure import fio, job_check, runner
from nvmuser.cli.bench import bench
from nvmuser.errors import UsageError
from nvmuser.paths import StateDir
from nvmuser.toolchain import find_spdk


async def test_real_fio_runs_our_script(tmp_path: Path) -> None:
    guest = ShellGuest(find_spdk().binary("fio").parent)
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    job = fio.Job("check", "randwrite", size="1M", io_size="1M", iodepth=4, verify="crc32c")
    done = await runner.run(guest, job.workload(), [str(disk)], processes={"self": [1]})
    [result] = done.jobs
    assert result.wrong is None
    assert result.verified_blocks == result.total_ios == 256
    assert result.directions.keys() == {"write"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.fio"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[x]\nrw=randraed\n", "failed parsing rw=randraed"),
        ("[x]\nrw=randread\nfoo=1\n", "Bad option <foo=1>"),
        ("[global]\niodepth=many\n[x]\nrw=read\n", "iodepth=many"),
    ],
)
def test_a_wrong_job_is_found_before_anything_starts(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    result = CliRunner().invoke(bench, ["guest", "--job", str(path)], obj=StateDir(tmp_path / "s"))
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(f"{path}: fio does not take this job: ")
    assert words in str(result.exception)
    assert sorted(tmp_path.iterdir()) == [path], "nothing was made"


@pytest.mark.parametrize(
    "workload",
    [
        lambda path: fio.Workload.from_file(path),
        lambda path: fio.Job("v", "randwrite", io_size="1M", verify="crc32c").workload(),
        lambda path: fio.Job("p", "randread", runtime=1, ioengine="io_uring", poll=True).workload(),
    ],
    ids=["file", "verify", "poll"],
)
def test_a_right_one_passes(tmp_path: Path, workload: Callable[[Path], fio.Workload]) -> None:
    path = written(tmp_path, "[x]\nrw=randread\nbs=8k\nruntime=1\ntime_based\n")
    job_check.check(workload(path), path)
