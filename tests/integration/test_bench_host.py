"""`nvmuser bench host` with every program, and beside its peer: that all run, and that the results have their keys."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from nvmuser.bench.scenarios.host_peers import OURS, VHOST


def bench(*options: str) -> dict[str, Any]:
    argv = [sys.executable, "-c", "from nvmuser.cli.main import main; main()", "bench", "host"]
    done = subprocess.run([*argv, *options, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_program_runs() -> None:
    result = bench("--rounds", "1", "--seconds", "1", "--depth", "4")
    for key in ("perf_ratio", "async_reads_per_s", "gpio_ratio", "transport_ratio", "fio_ratio"):
        assert result[key] > 0, key
    assert set(result["iops"]) == {"bdevperf", "spdk_nvme_perf", "nvmuser", "async", "fio"}
    assert result["workload"] == {"pattern": "randread", "depth": 4, "size": 4096, "seconds": 1}


def test_beside_vhost_user_blk() -> None:
    result = bench("--peers", VHOST, "--rounds", "2", "--seconds", "1", "--depth", "32")
    names = {"randread-4k-qd32", "randwrite-4k-qd32"}
    for key in ("device_ratios", "device_ratios_ci", "device_cpu_ratios", "device_cpu_ratios_ci"):
        assert set(result[key]) == names, key
    for key in ("device_iops", "device_us_per_io"):
        for job in names:
            assert all(len(result[key][job][name]) == 2 and min(result[key][job][name]) > 0 for name in (OURS, VHOST))
    assert all(ratio > 0 for ratio in result["device_ratios"].values())
    assert result["volume"] == "memory"
