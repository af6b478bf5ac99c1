"""A job file of a user's, looked at by fio itself before a guest is booted for it.

Owns that look. It needs the fio that was built with SPDK; with an SPDK of somebody else's there may be none, and the
guest's fio reports what is wrong.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from nvmuser.bench.measure.fio import JOB_FILE, Workload
from nvmuser.errors import SetupError, UsageError
from nvmuser.toolchain import find_spdk

_DEADLINE = 30.0


def check(workload: Workload, path: Path) -> None:
    """Have fio read it, as it is going to in the guest, and do nothing.

    :param path: the user's file, for the error.
    :raises UsageError: fio does not take it, in fio's words.
    """
    try:
        fio = find_spdk().binary("fio")
    except SetupError:
        return
    with tempfile.TemporaryDirectory(prefix="nvmuser-job-") as directory:
        (Path(directory) / JOB_FILE).write_text(workload.on(["/dev/nvme0n1"]).text, encoding="utf-8")
        done = subprocess.run(
            [fio, "--parse-only", JOB_FILE],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DEADLINE,
            check=False,
        )
    if done.returncode:
        lines = [line.removeprefix("fio: ").strip() for line in done.stderr.splitlines()]
        words = "; ".join(line for line in lines if line and not line.endswith("dropped"))
        raise UsageError(f"{path}: fio does not take this job: {words or f'exit status {done.returncode}'}")
