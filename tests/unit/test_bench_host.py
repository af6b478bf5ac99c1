"""`nvmuser bench host` without SPDK: command lines of the programs, and what is read from their output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from nvmuser.bench.scenarios import host_peers
from nvmuser.bench.scenarios import host_programs as programs
from nvmuser.bench.scenarios.host_peers import Run
from nvmuser.bench.scenarios.host_programs import HostWorkload
from nvmuser.cli.bench import bench
from nvmuser.errors import NvmeStatusError, SetupError
from nvmuser.initiator import PerfResult
from nvmuser.rpc import methods
from nvmuser.toolchain import Spdk

WORK = HostWorkload("randread", 32, 4096, 2, 0)
NQN = "nqn.2026-11.org.nvmuser:x"

SPDK_NVME_PERF = """\
Device Information                           :       IOPS      MiB/s    Average        min        max
VFIOUSER (/tmp/c0) NSID 1 from core  0:  127212.12     496.92      31.43       0.74    4576.58
========================================================
Total                                        :  127212.13     496.92      31.43       0.74    4576.58
"""
BDEVPERF = """\
\r                                                        Latency(us)
\r Device Information  : runtime(s)       IOPS      MiB/s     Fail/s     TO/s    Average        min        max
Job: bench (Core Mask 0x1, workload: randread, depth: 32, IO size: 4096)
\r     bench           :       1.00  921856.50    3601.00       0.00     0.00      34.64       9.44    4102.38
\r =====================================================================================================
\r     Total           :              921856.51    3601.00       0.00     0.00      34.64       9.44    4102.38
"""


@pytest.fixture
def spdk(tmp_path: Path) -> Spdk:
    for name in ("bin/fio", "bin/bdevperf", "bin/spdk_nvme_perf", "lib/fio/spdk_nvme"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return Spdk(tmp_path, "26.01")


def test_totals() -> None:
    assert programs.total(SPDK_NVME_PERF) == 127212.13
    assert programs.total(BDEVPERF) == 921856.51
    with pytest.raises(SetupError, match="no total"):
        programs.total("errors occurred")


def test_fio() -> None:
    job = {"error": 0, "read": {"iops": 1000.5}, "write": {"iops": 0}}
    assert programs.fio_iops("a line of SPDK's\n" + json.dumps({"jobs": [job]})) == 1000.5
    for wrong, words in (
        ("nothing", "no result"),
        ("{}", "no result"),
        (json.dumps({"jobs": [job | {"error": 5}]}), "5"),
    ):
        with pytest.raises(SetupError, match=words):
            programs.fio_iops(wrong)


def test_the_same_workload_for_all(spdk: Spdk) -> None:
    directory = Path("/tmp/c0")
    perf = programs.spdk_nvme_perf(spdk, WORK, directory, NQN)
    bdevperf = programs.bdevperf(spdk, WORK, Path("/tmp/x.json"))
    for argv in (perf, bdevperf):
        assert [argv[argv.index(option) + 1] for option in ("-q", "-o", "-w", "-t")] == ["32", "4096", "randread", "2"]
        assert "[0]" in argv
    fio = programs.fio(spdk, WORK, directory, NQN)
    assert {"--rw=randread", "--bs=4096", "--iodepth=32", "--runtime=2", "--cpus_allowed=0"} < set(fio)
    assert "--filename=trtype=VFIOUSER traddr=/tmp/c0 subnqn=nqn.2026-11.org.nvmuser\\:x ns=1" in fio
    assert programs.nvmuser(WORK, directory, awaited=False)[3:] == [
        "/tmp/c0",
        "0",
        "2",
        "perf",
        "randread",
        "32",
        "4096",
    ]
    assert programs.nvmuser(WORK, directory, awaited=True)[-4:] == ["async", "randread", "64", "4096"]


def test_peers_have_their_own_clients() -> None:
    work = host_peers.jobs(HostWorkload("", 0, 4096, 2, 0), host_peers.PATTERNS, host_peers.DEPTHS)
    assert list(work)[::5] == ["randread-4k-qd1", "randwrite-4k-qd128"]
    ours = programs.nvmuser(work["randwrite-4k-qd1"], Path("/tmp/c0"), awaited=False, hugepages=True)
    assert ours[3:] == ["/tmp/c0", "0", "2", "perf", "randwrite", "1", "4096", "hugepages"]
    theirs = programs.vhost_client(Path("/c"), work["randread-4k-qd32"], Path("/tmp/vb"))
    assert theirs == ["/c", "/tmp/vb", "0", "2", "randread", "32", "4096"]


def test_ratios_are_of_rounds() -> None:
    ours, theirs = [Run(100, 2), Run(300, 2), Run(90, 2)], [Run(100, 1), Run(100, 4), Run(100, 3)]
    runs = {"randread-4k-qd1": {host_peers.OURS: ours, host_peers.VHOST: theirs}}
    found = host_peers.PeersResult(runs, "memory", 4096, 2, 0.0).to_json()
    assert found["device_ratios"] == {"randread-4k-qd1": 1.0}
    assert found["device_ratios_ci"] == {"randread-4k-qd1": [0.9, 3.0]}
    assert found["device_cpu_ratios"] == {"randread-4k-qd1": 1.5}
    assert found["device_iops"]["randread-4k-qd1"][host_peers.OURS] == [100, 300, 90]


def test_bdevperf_has_the_volume_of_the_target() -> None:
    volume = methods.malloc_create("bench", 1 << 20, 4096, "u")
    (subsystem,) = json.loads(programs.bdevperf_config(volume))["subsystems"]
    assert subsystem == {"subsystem": "bdev", "config": [{"method": volume.method, "params": volume.params}]}


def test_percentiles() -> None:
    histogram = [(1.0, 50), (2.0, 49), (9.0, 1)]
    result = PerfResult("randread", 1, 4096, 2.0, 100, 0, 0, 1.5, 0.5, 8.5, histogram)
    assert [result.percentile(share) for share in (0, 50, 51, 99, 99.5, 100)] == [1.0, 1.0, 2.0, 2.0, 8.5, 8.5]
    assert result.iops == 50


def test_status_error_names_both() -> None:
    error = NvmeStatusError(2, 0x85, "MEDIA ERROR", "COMPARE FAILURE", do_not_retry=True)
    assert str(error) == "COMPARE FAILURE (MEDIA ERROR 0x2/0x85)"


def test_mistakes() -> None:
    for arguments, words in ((["--size", "5000"], "no multiple of 4096"), (["--file", "/nowhere"], "does not exist")):
        failed = CliRunner().invoke(bench, ["host", *arguments])
        assert failed.exit_code == 2
        assert words in failed.output
