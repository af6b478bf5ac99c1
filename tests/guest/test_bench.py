"""A short demo on the real parts: target, endpoint, volume, guest, fio, report; and nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmuser.bench.measure.fio import Job
from nvmuser.bench.measure.fio_output import Estimate
from nvmuser.bench.measure.progress import Silent
from nvmuser.bench.report.result import Result
from nvmuser.bench.scenarios import demo

MIB = 1 << 20


def processes_of(marker: str) -> list[str]:
    """Command lines of processes with this in them, our own left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(line)
    return found


async def gone(marker: str) -> None:
    """A supervisor lets go of its lock, by which it is known to have stopped, a moment before its process
    ends.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while processes_of(marker):  # noqa: ASYNC110 (processes of others tell no event)
                await asyncio.sleep(0.1)
    assert processes_of(marker) == []


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of this test's own for all temporary ones, so that what is left can be told from
    others'.
    """
    with tempfile.TemporaryDirectory(prefix="nvb-", dir="/tmp") as directory:
        monkeypatch.setattr("tempfile.tempdir", directory)
        yield Path(directory)


class Recorder(Silent):
    """Progress that keeps the estimates."""

    def __init__(self) -> None:
        self.estimates: list[Estimate] = []

    def estimate(self, workload: str, estimate: Estimate) -> None:
        self.estimates.append(estimate)


async def test_demo_measures_verifies_and_leaves_nothing(tmp_path: Path, short_tmp: Path) -> None:
    progress = Recorder()
    jobs = [
        Job("randread", "randread", iodepth=8, runtime=4).workload(),
        Job("verify", "randwrite", iodepth=8, size="32M", io_size="4M", verify="crc32c").workload(),
    ]
    async with demo.own_disk(tmp_path, progress, 32 * MIB) as disks:
        result = await demo.measure(disks, jobs, tmp_path, progress)

    document = json.loads((tmp_path / "result.json").read_text())
    assert document["verify_errors"] == 0
    assert document["accelerator"] in ("kvm", "tcg")
    assert {"spdk", "qemu", "guest_kernel", "fio"} <= document["versions"].keys()
    read, verify = document["jobs"]
    for job in (read, verify):
        assert job["iops"] > 0
        assert job["bw_bytes"] == pytest.approx(job["iops"] * 4096, rel=0.02)
        assert 0 < job["lat_ns"]["p50"] <= job["lat_ns"]["p99"] <= job["lat_ns"]["p99_9"]
        assert job["lat_ns"]["mean"] > 0
    assert verify["verified_blocks"] == 1024
    assert read["cpu"]["host_percent"].keys() == {"qemu", "target", "endpoint"}
    assert read["cpu"]["guest_percent"] > 0
    assert len(read["series"]["t_s"]) >= 3
    assert progress.estimates
    assert Result.read(tmp_path / "result.json").wrong == result.wrong == []
    assert (tmp_path / "report.html").read_text().count("<svg") == 2
    assert (tmp_path / "fio" / "verify" / "fio.json").is_file()

    assert not list(short_tmp.iterdir())
    assert not list(tmp_path.glob("disk-*"))
    await gone(str(short_tmp))


async def test_wrong_block_is_found(tmp_path: Path, short_tmp: Path) -> None:
    """fio in the guest writes checksums; we damage one block behind its back; reading back must tell."""
    progress = Silent()
    pattern = Job("check", "write", bs="4k", iodepth=8, size="4M", verify="crc32c")
    damaged = 5 * 4096

    async with demo.own_disk(tmp_path, progress, 32 * MIB) as disks:
        await demo.measure(disks, [pattern.workload()], tmp_path / "first", progress)
        [file] = tmp_path.glob("disk-*/demo")
        await asyncio.to_thread(damage, file, damaged)
        again = Job("again", "write", iodepth=8, size="4M", verify="crc32c", extra=(("verify_only", "1"),))
        result = await demo.measure(disks, [again.workload()], tmp_path / "second", progress)

    assert result.verify_errors == 1
    assert result.wrong == ["again: 1 wrong block"]
    assert "1 wrong block" in (tmp_path / "second" / "report.html").read_text()


def damage(file: Path, offset: int) -> None:
    """Past the host's page cache, which a target with direct I/O does not look into."""
    with file.open("r+b", buffering=0) as disk:
        disk.seek(offset)
        disk.write(os.urandom(4096))
        os.fsync(disk.fileno())
