"""A supervisor whose target does not start: what a service manager learns of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvmuser.toolchain.spdk import TRANSPORT_SYMBOL

TARGET = f"""#!/bin/sh
# {TRANSPORT_SYMBOL.decode()}
[ "$1" = --version ] && echo "SPDK v26.01" && exit
echo "no such device" >&2
exit 3
"""


def test_a_start_in_the_foreground_that_fails_ends_with_1(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("f")  # short enough for sockets
    program = root / "spdk/bin/nvmf_tgt"
    program.parent.mkdir(parents=True)
    program.write_text(TARGET)
    program.chmod(0o755)
    nvmuser = Path(sys.executable).parent / "nvmuser"
    result = subprocess.run(
        [nvmuser, "--state-dir", root / "s", "target", "start", "--foreground"],
        env=os.environ | {"NVMUSER_SPDK": str(program.parents[1])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "SPDK exited with status 3: no such device" in result.stderr
