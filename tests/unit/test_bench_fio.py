"""Jobs as fio reads them, and fio's own reports (samples made by fio 3.33 on a file) as we read them."""

from __future__ import annotations

import configparser
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmuser.bench.measure import fio, fio_output
from nvmuser.bench.measure.fio_output import Estimate, bin_percentiles, job_result, load, parse_estimate
from nvmuser.errors import GuestError, UsageError

DATA = Path(__file__).parent / "data" / "fio"


def sample(name: str) -> dict[str, object]:
    return load((DATA / f"{name}.json").read_text())


def sections(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string(text)
    return parser


def test_job_file_of_a_timed_job() -> None:
    job = fio.Job("randread-4k-qd32", "randread", iodepth=32, runtime=3, ramp=0.5, ioengine="io_uring", poll=True)
    parsed = sections(job.workload().on(["/dev/nvme0n1", "/dev/nvme1n1"]).text)
    assert parsed["global"]["filename"] == "/dev/nvme0n1:/dev/nvme1n1"
    assert dict(parsed["randread-4k-qd32"]) == {
        "rw": "randread",
        "bs": "4k",
        "iodepth": "32",
        "ioengine": "io_uring",
        "time_based": "1",
        "runtime": "3s",
        "ramp_time": "500ms",
        "hipri": "1",
    }


def test_verifying_job_goes_on_after_a_wrong_block_and_ends_by_its_amount() -> None:
    job = fio.Job("check", "randwrite", size="256M", io_size="48M", verify="crc32c")
    parsed = sections(job.workload().text)["check"]
    assert parsed["continue_on_error"] == "verify"
    assert "runtime" not in parsed
    assert "time_based" not in parsed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rw": "sideways"}, "not a mode"),
        ({"name": "with space"}, "not a job name"),
        ({"bs": "4x"}, "not a size"),
        ({"bs": "0"}, "not a size"),
        ({"iodepth": 0}, "depth"),
        ({"runtime": 0.0}, "measures nothing"),
        ({"runtime": None}, "needs an end"),
        ({"ioengine": "mmap"}, "not an I/O engine"),
        ({"poll": True}, "io_uring"),
        ({"verify": "crc32c"}, "only writes"),
        ({"verify": "crc32c", "rw": "randwrite"}, "ends by its amount"),
        ({"numjobs": 0}, "at least 1"),
    ],
)
def test_job_that_cannot_be_meant(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fio.Job(**({"name": "job", "rw": "randread", "runtime": 1.0} | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"), [("4k", 4096), ("128K", 131072), ("1G", 1 << 30), ("512", 512), ("2MiB", 2 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert fio.parse_size(text) == size


def test_job_file_of_somebodys_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.fio"
    path.write_text("[global]\nbs=8k\n[a]\nrw=randread\n[b]\nreadwrite=readwrite\n")
    workload = fio.Workload.from_file(path)
    assert (workload.name, workload.writes, workload.seconds) == ("mine", True, None)
    path.write_text("[a]\nrw=randread:8\n")
    assert not fio.Workload.from_file(path).writes
    path.write_text("[global]\nbs=8k\n")
    with pytest.raises(UsageError, match="no fio job"):
        fio.Workload.from_file(path)
    with pytest.raises(UsageError, match="cannot read"):
        fio.Workload.from_file(tmp_path / "none.fio")


def test_report_of_a_read_job() -> None:
    job = job_result(sample("randread"), 0)
    assert (job.name, job.rw, job.bs, job.iodepth, job.ioengine) == ("randread", "randread", "4k", 8, "libaio")
    assert job.iops == pytest.approx(job.total_ios / job.runtime_s, rel=0.01)
    assert job.bw_bytes == pytest.approx(job.iops * 4096, rel=0.01)
    assert 0 < job.lat_ns.min <= job.lat_ns.p50 <= job.lat_ns.p99 <= job.lat_ns.p99_9 <= job.lat_ns.max * 1.05
    assert job.wrong is None


@pytest.mark.parametrize("name", ["randread", "verify"])
def test_percentiles_of_bins_are_fios_own(name: str) -> None:
    document = json.loads((DATA / f"{name}.json").read_text())["jobs"][0]
    block = document["read" if name == "randread" else "write"]["lat_ns"]
    own = {float(key): float(value) for key, value in block["percentile"].items()}
    bins = {int(key): value for key, value in block["bins"].items()}
    for percentile, value in own.items():
        # fio's rank may differ by one sample: then it is the bin next to it.
        [found] = bin_percentiles(bins, [percentile])
        assert found == pytest.approx(value, rel=0.05), percentile


def test_mixed_job_is_both_directions_together() -> None:
    job = job_result(sample("randrw"), 0)
    read, write = job.directions["read"], job.directions["write"]
    assert job.total_ios == read.total_ios + write.total_ios
    assert job.iops == pytest.approx(read.iops + write.iops)
    low, high = sorted((read.lat_ns.p50, write.lat_ns.p50))
    assert low <= job.lat_ns.p50 <= high
    assert min(read.lat_ns.mean, write.lat_ns.mean) <= job.lat_ns.mean <= max(read.lat_ns.mean, write.lat_ns.mean)


def test_verifying_job_counts_what_was_read_back_apart() -> None:
    job = job_result(sample("verify"), 0)
    assert job.directions.keys() == {"write"}
    assert job.verified_blocks == job.total_ios == 1024
    assert (job.verify_errors, job.error, job.wrong) == (0, None, None)


def test_wrong_blocks_are_counted_though_fio_ended_well() -> None:
    job = job_result(sample("corrupt"), 0)
    assert job.verify_errors == 3
    assert job.wrong == "3 wrong blocks"


def test_wrong_block_that_ended_fio() -> None:
    job = job_result(sample("corrupt_fatal"), 0)
    assert job.verify_errors == 1
    assert job.error is None


def test_verification_that_did_not_take_place_is_wrong() -> None:
    document = json.loads((DATA / "verify.json").read_text())
    document["jobs"][0]["read"]["total_ios"] = 0
    assert job_result(document, 0).wrong == "only 0 of 1024 blocks were read back"


def test_io_error_is_told_by_name() -> None:
    document = json.loads((DATA / "randread.json").read_text())
    document["jobs"][0]["error"] = 5
    job = job_result(document, 0)
    assert (job.error, job.verify_errors) == ("EIO", 0)


def test_stonewalled_jobs_are_told_apart() -> None:
    report = sample("two")
    jobs = [job_result(report, index) for index in range(2)]
    assert [(job.name, job.rw, job.bs) for job in jobs] == [("one", "randread", "4k"), ("two", "randwrite", "64k")]


def test_series_adds_directions_up() -> None:
    logs = [(DATA / f"randrw_{kind}.1.log").read_text() for kind in ("iops", "lat")]
    both = fio_output.series(*logs, 500, ["read", "write"])
    reads = fio_output.series(*logs, 500, ["read"])
    writes = fio_output.series(*logs, 500, ["write"])
    assert both.t_s[:4] == [0.5, 1.0, 1.5, 2.0]
    assert both.iops == [pytest.approx(a + b) for a, b in zip(reads.iops, writes.iops, strict=True)]
    for total, read, write in zip(both.lat_ns, reads.lat_ns, writes.lat_ns, strict=True):
        assert min(read, write) <= total <= max(read, write)


def test_no_report_at_all() -> None:
    with pytest.raises(GuestError, match="no report"):
        load("fio: job file not found\n")


def test_warnings_before_the_report_and_several_reports() -> None:
    text = (DATA / "randread.json").read_text()
    later = text.replace('"jobname" : "randread"', '"jobname" : "later"')
    assert load("note: something\n" + text + later)["jobs"][0]["jobname"] == "later"


@pytest.mark.parametrize(
    ("line", "estimate"),
    [
        ("Jobs: 1 (f=1): [r(1)][75.0%][r=49.6MiB/s][r=12.7k IOPS][eta 00m:02s]", Estimate(12_700, 2)),
        ("Jobs: 1 (f=1): [m(1)][9.1%][r=47.3MiB/s,w=47.0MiB/s][r=12.1k,w=900 IOPS][eta 01m:01s]", Estimate(13_000, 61)),
        ("Jobs: 1 (f=1): [r(1)][-.-%][r=39.3MiB/s][r=10.1k IOPS][eta 00m:00s]", Estimate(10_100, 0)),
        ("Jobs: 1 (f=0)", None),
        ("", None),
    ],
)
def test_estimates(line: str, estimate: Estimate | None) -> None:
    assert parse_estimate(line) == estimate


@given(st.dictionaries(st.integers(1, 10**9), st.integers(1, 50), min_size=1, max_size=40))
def test_bin_percentiles_are_ordered_and_in_range(bins: dict[int, int]) -> None:
    points = bin_percentiles(bins, [50, 99, 99.9, 100])
    assert points == sorted(points)
    assert min(bins) <= points[0]
    assert points[-1] == max(bins)
    below = sum(count for value, count in bins.items() if value <= points[0])
    assert below >= math.ceil(sum(bins.values()) / 2)
