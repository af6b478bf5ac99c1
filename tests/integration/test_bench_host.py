"""`nvmuser bench host` with every program, once: that all of them run, and that the result has its keys."""

from __future__ import annotations

import json
import subprocess
import sys


def test_every_program_runs() -> None:
    argv = [sys.executable, "-c", "from nvmuser.cli.main import main; main()", "bench", "host"]
    options = ["--rounds", "1", "--seconds", "1", "--depth", "4", "--json"]
    done = subprocess.run([*argv, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for key in ("perf_ratio", "async_reads_per_s", "gpio_ratio", "transport_ratio", "fio_ratio"):
        assert result[key] > 0, key
    assert set(result["iops"]) == {"bdevperf", "spdk_nvme_perf", "nvmuser", "async", "fio"}
    assert result["workload"] == {"pattern": "randread", "depth": 4, "size": 4096, "seconds": 1}
