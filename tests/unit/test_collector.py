"""How often our processes look for cycles of objects."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LOOKS = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_threshold()[0], file=sys.stderr)); "


@pytest.mark.parametrize("module", ["nvmuser.cli.main", "nvmuser.supervisor.daemon"])
def test_a_process_that_handles_thousands_of_objects_looks_less_often(module: str) -> None:
    script = f"{_LOOKS}from {module} import main; main()"
    done = subprocess.run([sys.executable, "-c", script, "--state-dir", "/none", "--spdk", "/none", "--ready-fd", "1"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode
    assert int(done.stderr.split()[-1]) > 10_000
